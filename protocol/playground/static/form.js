// The form of a workbench: the fields of a view, what is wrong with them, and the buttons.

const TYPING_MILLISECONDS = 150;

/**
 * The form of a panel.
 *
 * @param actions `submit`, `stop` and `restart` for the buttons; `change` for a moment after the inputs have changed.
 */
function createForm(panel, { submit, stop, restart, change }) {
  const problem = element("p", { class: "problem", role: "alert", id: newId() });
  const sendButton = element("button", { type: "submit", class: "main" }, "Send");
  const stopButton = button("Stop", stop, { hidden: true });
  const restartButton = panel.clear && button("New conversation", restart);
  const keys = element("p", { class: "hint keys" }, describeKeys(panel));
  const form = element("form", { class: "fields", novalidate: true }, panel.fields, problem,
    element("div", { class: "actions" }, sendButton, stopButton, restartButton, keys));
  let typing = 0;
  const send = () => {
    clearTimeout(typing);
    submit();
  };
  const onInput = () => {
    clearTimeout(typing);
    typing = setTimeout(change, TYPING_MILLISECONDS);
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  form.addEventListener("keydown", (event) => pressEnter(event, panel, send));
  form.addEventListener("input", onInput);
  form.addEventListener("change", onInput);
  return {
    element: form,
    read: (onProblem) => readPanel(panel, onProblem),
    clearProblem: () => clearProblem(form, problem),
    showProblem: (error) => showProblem(problem, error),
    focusSend: () => sendButton.focus(),
    setRunning(isRunning) {
      if (!isRunning && stopButton === document.activeElement) sendButton.focus();
      stopButton.hidden = !isRunning;
    },
  };
}

function describeKeys(panel) {
  if (panel.message) return "Enter sends, Shift + Enter begins a line";
  return `${/Mac|iP/.test(navigator.platform) ? "⌘" : "Ctrl"} + Enter sends`;
}

/** Send, if the keys mean that. A key that is held presses once: only lines repeat. */
function pressEnter(event, panel, send) {
  if (event.key !== "Enter" || event.isComposing) return;
  const isMessage = event.target === panel.message && !event.shiftKey;
  const sends = event.ctrlKey || event.metaKey || isMessage;
  const isLine = event.target.matches("textarea") && !sends;
  // In inputs and on buttons, the browser itself would submit at each repetition.
  if (sends || (event.repeat && !isLine)) event.preventDefault();
  if (sends && !event.repeat) send();
}

/** The request of a panel's fields; null if they make none, of which `onProblem` is told. */
function readPanel(panel, onProblem) {
  try {
    return panel.read();
  } catch (error) {
    if (!(error instanceof FieldError)) throw error;
    onProblem(error);
    return null;
  }
}

function clearProblem(form, problem) {
  problem.textContent = "";
  for (const control of form.querySelectorAll("[aria-invalid]")) {
    control.removeAttribute("aria-invalid");
    control.setAttribute("aria-describedby", control.getAttribute("aria-describedby").replace(problem.id, "").trim());
  }
}

function showProblem(problem, { message, control }) {
  problem.textContent = message;
  if (control.matches("input, textarea, select")) {
    control.setAttribute("aria-invalid", "true");
    control.setAttribute("aria-describedby", `${control.getAttribute("aria-describedby") ?? ""} ${problem.id}`.trim());
  }
  control.closest("details")?.setAttribute("open", "");
  control.focus();
}
