// The look of the page: theme, the settings' sheet, dropped drafts, the growing field, and copying.
// page: its elements by id.

const COPIED_MS = 1200;

export function makeSwitches(page) {
  const { theme } = page;
  theme.setAttribute("aria-pressed", String(matchMedia("(prefers-color-scheme: dark)").matches));
  theme.addEventListener("click", () => {
    const dark = theme.getAttribute("aria-pressed") === "false";
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    theme.setAttribute("aria-pressed", String(dark));
  });
  page["open-settings"].addEventListener("click", () => showSettings(page, true));
  page["close-settings"].addEventListener("click", () => showSettings(page, false));
  page["show-dropped"].addEventListener("change", () => document.body.classList.toggle("no-dropped", !page["show-dropped"].checked));
  page.question.addEventListener("input", () => fit(page));
}

function showSettings(page, open) {
  document.body.classList.toggle("settings-open", open);
  page["open-settings"].setAttribute("aria-expanded", String(open));
  page[open ? "close-settings" : "open-settings"].focus();
}

export function closeSettings(page) {
  if (document.body.classList.contains("settings-open")) showSettings(page, false);
}

/** The field grows with its text. */
export function fit({ question }) {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

/** Into the clipboard, or where the browser refuses, which it does to pages outside localhost and https, into a window to copy from. */
export async function copy(page, button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    page["snippet-text"].value = text;
    page.snippet.showModal();
    page["snippet-text"].select();
    return;
  }
  button.dataset.name ??= button.textContent;
  button.textContent = "Copied";
  page.said.textContent = "Copied.";
  setTimeout(() => (button.textContent = button.dataset.name), COPIED_MS);
}
