// Requests to the server: its pairs and rules, its health, and streamed answers.
// Every failure is a ServerError, with a sentence as message and advice what to do next.

/** status: of the server's response; 0 for none. */
export class ServerError extends Error {
  constructor(message, advice, status = 0) {
    super(message);
    this.advice = advice;
    this.status = status;
  }
}

const GONE = "The server does not answer.";
const LOOK = "Check whether “speccascade serve” is still running. This page keeps trying.";

const ADVICE = {
  401: "Enter the server’s API key in the settings, then ask again.",
  403: "Open this page at the address that the server printed.",
  404: "Choose another pair in the settings.",
  408: "Ask for a shorter answer in the settings, then ask again.",
  413: "Shorten the question, or begin a new conversation.",
  422: "Change it, then ask again.",
  400: "Change it, then ask again.",
  504: "Ask for a shorter answer in the settings, then ask again.",
};

function advice(status, wait) {
  if (status === 429 || status === 503) return wait ? `Ask again in ${wait} s.` : "Ask again in a moment.";
  return ADVICE[status] ?? "Ask again; if it fails again, see the server’s output.";
}

/** The sentence in an OpenAI-shaped error; null where there is none. */
function sentence(body) {
  const message = body?.error?.message ?? body?.message ?? body?.detail;
  return typeof message === "string" && message ? ended(message) : null;
}

/** With a full stop, so that advice can follow. */
function ended(text) {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(GONE, LOOK);
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const said = sentence(body) ?? `The server refused with status ${response.status}.`;
  throw new ServerError(said, advice(response.status, response.headers.get("Retry-After")), response.status);
}

function headers(key) {
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

/** Pairs and rules, as GET /api/pairs gives them. */
export async function pairsAndRules(key) {
  const response = await request("/api/pairs", { headers: headers(key) });
  const found = await response.json().catch(() => {
    throw new ServerError("The server of this page does not answer here.", "Check which program runs at this address.", 502);
  });
  const own = (found.own_rules ?? []).map((name) => ({ name, trade: "a rule of your own, named when the server was started", dial: null }));
  return { pairs: found.pairs ?? [], rules: [...(found.rules ?? []), ...own] };
}

/** Whether anybody answers, however. */
export async function isThere() {
  try {
    await fetch("/health", { cache: "no-store" });
    return true;
  } catch {
    return false;
  }
}

/** The data of server-sent events, one by one, without the last [DONE]. Throws where the stream breaks off before that. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new ServerError("The answer broke off.", LOOK);
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (!lines.length) continue; // a comment that keeps the connection alive
      const data = lines.map((line) => line.slice(5).trimStart()).join("\n");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

/**
 * The blocks of an answer: { tokens: [{ text, origin, ... }], stats: {...} | null, finish: "stop" | "length" | ... | null }.
 * A server that tells no origins gives tokens without one.
 */
export async function* answer(body, { key, signal }) {
  const response = await request("/v1/chat/completions", { method: "POST", headers: headers(key), body: JSON.stringify(body), signal });
  let finished = false;
  try {
    for await (const event of events(response)) {
      if (event.error) throw new ServerError(sentence(event) ?? "The answer failed.", advice(500, null), 500);
      const choice = event.choices?.[0];
      const extra = event.speccascade ?? {};
      const text = choice?.delta?.content ?? "";
      const tokens = extra.tokens ?? (text ? [{ text, origin: null }] : []);
      const finish = choice?.finish_reason ?? null;
      finished ||= finish !== null;
      if (tokens.length || finish || extra.stats) yield { tokens, stats: extra.stats ?? null, finish };
    }
  } catch (error) {
    if (error instanceof ServerError || error.name === "AbortError") {
      if (finished && error.name !== "AbortError") return; // the answer is complete, only [DONE] is missing
      throw error;
    }
    if (error instanceof SyntaxError) throw new ServerError("The answer cannot be read.", "Ask again.", 502);
    throw new ServerError("The answer broke off.", LOOK);
  }
}
