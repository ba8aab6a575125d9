// The workbench of a view: its fields, the answer to the last request, and the code of that request.

/**
 * A workbench of a model and a view.
 *
 * @param readKey returns the API key, empty for none.
 * @param onUnauthorized called if the server asks for another key.
 */
function createBench(model, view, readKey, onUnauthorized) {
  const panel = view.create(model);
  const send = element("button", { type: "submit", class: "main" }, panel.action ?? "Send");
  const stop = button("Stop", () => running?.abort(), { hidden: true });
  const problem = element("p", { class: "problem", role: "alert" });
  const facts = element("dl", { class: "numbers" });
  const content = element("div", { class: "content" }, element("p", { class: "hint" }, "The answer will be here."));
  const code = createCode(readKey);
  // The controller of the request under way; what belongs to another is dropped.
  let running = null;

  const form = element(
    "form",
    { class: "card fields", novalidate: true },
    panel.fields,
    problem,
    element("div", { class: "actions" }, send, stop, element("p", { class: "hint keys" }, "Ctrl + Enter sends")),
  );
  const output = element(
    "section",
    { class: "card answer", "aria-label": "Answer" },
    element("div", { class: "heading" }, element("h2", {}, "Answer"), facts),
    content,
  );

  const updateCode = () => {
    try {
      code.show(panel.read());
    } catch (error) {
      // The code of the last request stays until the fields make another.
      if (!(error instanceof FieldError)) throw error;
      code.show(code.request);
    }
  };

  const setRunning = (controller) => {
    running = controller;
    stop.hidden = controller === null;
    output.setAttribute("aria-busy", String(controller !== null));
  };

  async function submit() {
    problem.textContent = "";
    let request;
    try {
      request = panel.read();
    } catch (error) {
      if (!(error instanceof FieldError)) throw error;
      problem.textContent = error.message;
      error.control.focus();
      return;
    }
    running?.abort();
    const controller = new AbortController();
    setRunning(controller);
    code.show(request);
    showFacts(facts, {});
    announce("Sent.");
    const isCurrent = () => running === controller;
    const key = readKey();
    const stream = panel.open?.(request);
    if (stream) content.replaceChildren(...stream.content);
    const began = performance.now();
    let firstAfter = null;
    const take = (event) => {
      if (!isCurrent()) return;
      firstAfter ??= performance.now() - began;
      stream.take(event);
    };
    try {
      const result = await call(request, { key, signal: controller.signal, take: stream && take });
      if (!isCurrent()) return;
      const shown = stream ? { summary: stream.close(true) } : panel.show(result.answer, request);
      if (!stream) content.replaceChildren(...shown.content.filter(Boolean));
      const usage = stream ? stream.usage?.() : result.answer?.usage;
      showFacts(facts, { ...result, firstAfter, usage });
      announce(`Answer after ${Math.round(result.milliseconds)} ms. ${shown.summary}`);
      if (!usage && panel.listTexts) countTokens(panel.listTexts(request.body), key, { ...result, firstAfter });
    } catch (error) {
      if (!isCurrent()) return;
      const summary = stream?.close(false);
      if (error.name === "AbortError") {
        if (!stream) content.replaceChildren(element("p", { class: "hint" }, "Stopped."));
        announce(summary ? `Stopped. ${summary}` : "Stopped.");
      } else if (error instanceof CallError) {
        const box = showError(error, submit);
        if (stream) content.append(box);
        else content.replaceChildren(box);
        showFacts(facts, error);
        if (error.status === 401) onUnauthorized();
      } else {
        content.replaceChildren(showError(new CallError(`The page cannot show the answer: ${error.message}`), submit));
        throw error;
      }
    } finally {
      if (isCurrent()) setRunning(null);
    }
  }

  /** Tell the tokens of texts, where the answer does not; it is no error if the server does not count them. */
  async function countTokens(texts, key, result) {
    const shown = code.request;
    const path = `tokenize?model=${encodeURIComponent(model.id)}`;
    const counted = await call({ path, body: { inputs: texts } }, { key }).catch(() => null);
    if (counted === null || code.request !== shown || running !== null) return;
    const tokens = counted.answer.reduce((sum, each) => sum + each.length, 0);
    showFacts(facts, { ...result, usage: { prompt_tokens: tokens } });
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.defaultPrevented) {
      event.preventDefault();
      submit();
    }
  });
  form.addEventListener("input", updateCode);
  form.addEventListener("change", updateCode);
  updateCode();
  return {
    element: element("div", { class: "bench" }, element("div", { class: "pair" }, form, output), code.element),
    updateCode,
    stop: () => running?.abort(),
  };
}

/** Milliseconds, tokens and the request's id. */
function showFacts(list, { milliseconds, firstAfter, usage, requestId, status }) {
  const facts = [];
  const add = (name, value) => facts.push(element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  if (status) add("Status", String(status));
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
  if (requestId) add("Request", requestId);
  list.replaceChildren(...facts);
}

function showError(error, again) {
  const isTemporary = [0, 429, 503, 504].includes(error.status);
  return element(
    "div",
    { class: "error", role: "alert" },
    element("h3", {}, error.status ? `Error ${error.status}` : "No answer"),
    element("p", {}, error.message),
    element("p", { class: "hint" }, advise(error)),
    isTemporary ? button("Try again", again) : null,
  );
}

/** The code of a request in the languages of CODE_KINDS. */
function createCode(readKey) {
  let kind = CODE_KINDS[0].id;
  const code = element("code");
  const copied = element("span", { role: "status", class: "hint" });
  const made = {
    request: null,
    show(request) {
      if (request === null) return;
      made.request = request;
      copied.textContent = "";
      code.textContent = CODE_KINDS.find(({ id }) => id === kind).write(request, readKey() !== "");
    },
  };
  const choose = (id) => {
    kind = id;
    made.show(made.request);
  };
  const copy = async () => {
    copied.textContent = (await copyText(code.textContent)) ? "Copied" : "Copy it by hand: the browser does not allow it";
  };
  made.element = element(
    "section",
    { class: "card code", "aria-label": "Code of this request" },
    element(
      "div",
      { class: "heading" },
      element("h2", {}, "Code of this request"),
      segments("Language", CODE_KINDS, kind, choose),
      element("div", { class: "copy" }, copied, button("Copy", copy)),
    ),
    element("pre", { tabindex: "0", "aria-label": "Code" }, code),
  );
  return made;
}
