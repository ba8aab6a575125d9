// The workbench of a view: its fields, the answer to the last request, and the code of that request.

const SHOWN_CODE_CHARACTERS = 20_000;
const TYPING_MILLISECONDS = 150;

/**
 * A workbench of a model and a view.
 *
 * @param readKey returns the API key, empty for none.
 * @param onUnauthorized called if the server asks for another key.
 */
function createWorkbench(model, view, readKey, onUnauthorized) {
  const lookUp = async (request) => {
    try {
      return (await call(request, { key: readKey() })).answer;
    } catch {
      return {};
    }
  };
  const panel = view.create(model, lookUp);
  const send = element("button", { type: "submit", class: "main" }, "Send");
  const stop = button("Stop", () => running.stop(), { hidden: true });
  const clear = panel.clear && button("Start again", () => restart());
  const problem = element("p", { class: "problem", role: "alert", id: newId() });
  const facts = element("dl", { class: "numbers" });
  const content = element("div", { class: "content" });
  const code = createCode(readKey);
  // The request under way, and the last one: what comes for others is dropped.
  let running = null;
  let last = null;

  const modifier = /Mac|iP/.test(navigator.platform) ? "⌘" : "Ctrl";
  const keys = panel.log ? "Enter sends, Shift + Enter begins a line" : `${modifier} + Enter sends`;
  const form = element(
    "form",
    { class: "fields", novalidate: true },
    panel.fields,
    problem,
    element("div", { class: "actions" }, send, stop, clear, element("p", { class: "hint keys" }, keys)),
  );
  const output = element(
    "section",
    { class: "answer", "aria-label": "Answer", "aria-busy": "false" },
    element("div", { class: "heading" }, element("h2", {}, panel.log ? "Conversation" : "Answer"), facts),
    content,
  );

  function clearProblem() {
    problem.textContent = "";
    for (const control of form.querySelectorAll("[aria-invalid]")) {
      control.removeAttribute("aria-invalid");
      control.setAttribute("aria-describedby", control.getAttribute("aria-describedby").replace(problem.id, "").trim());
    }
  }

  function showProblem({ message, control }) {
    problem.textContent = message;
    if (control.matches("input, textarea, select")) {
      control.setAttribute("aria-invalid", "true");
      control.setAttribute("aria-describedby", `${control.getAttribute("aria-describedby") ?? ""} ${problem.id}`.trim());
    }
    control.closest("details")?.setAttribute("open", "");
    control.focus();
  }

  /** The request of the fields; null if they make none, of which `onProblem` is told. */
  function read(onProblem) {
    try {
      return panel.read();
    } catch (error) {
      if (!(error instanceof FieldError)) throw error;
      onProblem(error);
      return null;
    }
  }

  /** Show the code of the fields' request; that of the last one where they make none. */
  function updateCode() {
    code.show(read(() => {}) ?? code.request);
  }

  function setRunning(next) {
    running = next;
    if (!next && stop === document.activeElement) send.focus();
    stop.hidden = !next;
    output.setAttribute("aria-busy", String(Boolean(next)));
  }

  function restart() {
    running?.stop();
    panel.clear?.();
    clearProblem();
    showFacts(facts, {});
    content.replaceChildren(panel.log ?? element("p", { class: "hint" }, "Nothing has been sent yet."));
    updateCode();
  }

  function submit() {
    clearProblem();
    // A second press of the button, while the first is being answered, finds a field empty that the first has emptied.
    const onProblem = (error) => {
      if (!running || error.control.value !== "") showProblem(error);
    };
    if (!read(onProblem)) return;
    running?.stop();
    start(panel.read());
  }

  /** Send a request and show its answer, until it is stopped or another one is sent. */
  async function start(request) {
    const controller = new AbortController();
    const stream = panel.start?.(request);
    const began = performance.now();
    let firstAfter = null;
    const isCurrent = () => running === sending;
    const tell = (text) => output.isConnected && announce(text);
    const sending = {
      stop() {
        setRunning(null);
        controller.abort();
        stream?.finish("stopped");
        if (!stream) content.replaceChildren(element("p", { class: "hint" }, "You stopped it."));
        tell("Stopped.");
      },
    };
    const onEvent = (event) => {
      if (!isCurrent()) return;
      firstAfter ??= performance.now() - began;
      stream.onEvent(event);
    };
    last = request;
    setRunning(sending);
    code.show(request);
    showFacts(facts, {});
    if (stream) content.replaceChildren(...stream.content);
    reveal(panel.log ? form : output);
    tell("Sent.");
    try {
      const result = await call(request, { key: readKey(), signal: controller.signal, onEvent: stream && onEvent });
      if (!isCurrent()) return;
      const shown = stream ? { summary: stream.finish("whole") } : panel.show(result.answer, request);
      if (!stream) content.replaceChildren(...shown.content.filter(Boolean));
      const usage = stream ? stream.usage() : result.answer.usage;
      showFacts(facts, { ...result, firstAfter, usage });
      tell(`Answer after ${Math.round(result.milliseconds)} ms. ${shown.summary}`);
      if (!usage) countTokens(request, result);
      clearProblem();
    } catch (error) {
      if (isCurrent()) fail(error, request, stream);
    } finally {
      if (isCurrent()) setRunning(null);
    }
  }

  function fail(error, request, stream) {
    stream?.finish("failed");
    const isCall = error instanceof CallError;
    const shown = isCall ? error : new CallError("This page cannot show the answer.", { isAnswered: true });
    const box = showError(shown, () => {
      send.focus();
      start(request);
    });
    // Before what has come of a stream, which may be long; a log is scrolled to its end.
    if (panel.log) content.append(box);
    else if (stream) content.prepend(box);
    else content.replaceChildren(box);
    showFacts(facts, shown);
    if (shown.status === 401 && output.isConnected) onUnauthorized();
    if (!isCall) throw error;
  }

  /** Tell the tokens of texts, where the answer does not. */
  async function countTokens(request, result) {
    const texts = panel.listTexts?.(request.body) ?? [];
    if (texts.length === 0) return;
    const counted = await lookUp({ path: `tokenize?model=${encodeURIComponent(model.id)}`, body: { inputs: texts } });
    if (!Array.isArray(counted) || last !== request || running) return;
    const tokens = counted.reduce((sum, each) => sum + each.length, 0);
    showFacts(facts, { ...result, usage: { prompt_tokens: tokens } });
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing) return;
    const isMessage = panel.log && !event.shiftKey && event.target.matches(".fields > .field > textarea");
    if (!(event.ctrlKey || event.metaKey || isMessage)) return;
    event.preventDefault();
    submit();
  });
  let typing = 0;
  const onInput = () => {
    clearTimeout(typing);
    typing = setTimeout(updateCode, TYPING_MILLISECONDS);
  };
  form.addEventListener("input", onInput);
  form.addEventListener("change", onInput);
  restart();

  const pair = panel.log
    ? element("div", { class: "card conversation" }, output, form)
    : element("div", { class: "pair" }, form, output);
  if (!panel.log) [form, output].forEach((each) => each.classList.add("card"));
  return {
    element: element("div", { class: "workbench" }, pair, code.element),
    updateCode,
    stop: () => running?.stop(),
  };
}

/** Scroll to an element that begins outside the window, or near its lower edge. */
function reveal(element) {
  const { top } = element.getBoundingClientRect();
  if (top < 0 || top > innerHeight - 200) element.scrollIntoView({ block: "nearest" });
}

/** Milliseconds, tokens and the request's id. */
function showFacts(list, { milliseconds, firstAfter, usage, requestId }) {
  const facts = [];
  const add = (name, value, kind) =>
    facts.push(element("div", { class: kind }, element("dt", {}, name), element("dd", {}, value)));
  if (milliseconds) add("Latency", `${milliseconds.toFixed(milliseconds < 100 ? 1 : 0)} ms`);
  if (firstAfter) add("First token", `${firstAfter.toFixed(0)} ms`);
  if (usage?.prompt_tokens !== undefined) add("Input", `${usage.prompt_tokens} tokens`);
  if (usage?.completion_tokens) {
    add("Output", `${usage.completion_tokens} tokens`);
    const seconds = (milliseconds - (firstAfter ?? 0)) / 1000;
    if (firstAfter && usage.completion_tokens > 1 && seconds > 0) {
      add("Speed", `${((usage.completion_tokens - 1) / seconds).toFixed(1)} tokens/s`);
    }
  }
  if (requestId) add("Request", requestId, "id");
  list.replaceChildren(...facts);
}

function showError(error, retry) {
  const title = error.status ? `Error ${error.status}` : error.isAnswered ? "Not understood" : "No whole answer";
  return element(
    "div",
    { class: "error", role: "alert" },
    element("h3", {}, title),
    element("p", {}, error.message),
    element("p", { class: "hint" }, advise(error)),
    isTemporary(error) ? button("Try again", retry) : null,
  );
}

/** The code of a request in the languages of CODE_KINDS; a long one is shown in part, and copied as a whole. */
function createCode(readKey) {
  let kind = CODE_KINDS[0].id;
  const shown = element("code");
  const copied = element("span", { role: "status", class: "hint" });
  const write = () => CODE_KINDS.find(({ id }) => id === kind).write(code.request, readKey() !== "");
  const copy = async () => {
    copied.textContent = (await copyText(write())) ? "Copied" : "The browser does not allow it";
  };
  const code = {
    request: null,
    show(request) {
      if (request === null) return;
      code.request = request;
      copied.textContent = "";
      const text = write();
      const rest = text.length - SHOWN_CODE_CHARACTERS;
      const note = `\n… and ${rest} more characters, which “Copy” copies too.`;
      shown.textContent = rest > 0 ? text.slice(0, SHOWN_CODE_CHARACTERS) + note : text;
    },
  };
  const choose = (id) => {
    kind = id;
    code.show(code.request);
  };
  code.element = element(
    "section",
    { class: "card code", "aria-label": "Code of this request" },
    element(
      "div",
      { class: "heading" },
      element("h2", {}, "Code of this request"),
      element("div", { class: "copy" }, copied, button("Copy", copy)),
      segments("Language", CODE_KINDS, kind, choose),
    ),
    element("pre", { tabindex: "0", "aria-label": "Code" }, shown),
  );
  return code;
}
