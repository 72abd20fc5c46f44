// A request as code to paste elsewhere.

/** Single-quoted for a POSIX shell. */
function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

export function asCurl(origin, body, hasKey) {
  const lines = [
    `curl -N ${quoted(`${origin}/v1/chat/completions`)}`,
    `-H 'Content-Type: application/json'`,
    ...(hasKey ? [`-H "Authorization: Bearer $SPECCASCADE_API_KEY"`] : []),
    `-d ${quoted(JSON.stringify(body, null, 2))}`,
  ];
  return lines.join(" \\\n  ");
}

/** A value of JSON as Python writes it. */
function literal(value, indent) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = `${indent}    `;
  if (Array.isArray(value)) return value.length ? `[\n${value.map((each) => `${inner}${literal(each, inner)},\n`).join("")}${indent}]` : "[]";
  const pairs = Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${literal(each, inner)}`);
  return `{${pairs.join(", ")}}`;
}

export function asPython(origin, body, hasKey) {
  const { speccascade, ...usual } = body;
  const given = Object.entries(usual).map(([name, value]) => `    ${name}=${literal(value, "    ")},\n`);
  const key = hasKey ? `os.environ["SPECCASCADE_API_KEY"]` : `"not needed"`;
  return `${hasKey ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(`${origin}/v1`)}, api_key=${key})
stream = client.chat.completions.create(
${given.join("")}    extra_body={"speccascade": ${literal(speccascade, "    ")}},
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
`;
}
