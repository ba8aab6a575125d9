// The workbench of a view: its form, the answer to the last request, and the code for its inputs.

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
  const bench = {
    model, panel, lookUp, readKey, onUnauthorized,
    output: createOutput(panel),
    code: createCode(readKey),
    form: createForm(panel, {
      submit: () => submitForm(bench),
      stop: () => stopExchange(bench),
      restart: () => restart(bench),
      change: () => updateCode(bench),
    }),
    // The exchange under way, and the last one: what comes for others is dropped.
    running: null,
    latest: null,
  };
  restart(bench);
  return {
    element: element("div", { class: "workbench" }, layOut(bench), bench.code.element),
    updateCode: bench.code.update,
    stop: () => stopExchange(bench),
  };
}

/** The form beside the answer, each in a card; a conversation is above its form, both in one. */
function layOut({ panel, form, output }) {
  if (panel.log) return element("div", { class: "card conversation" }, output.element, form.element);
  [form, output].forEach((each) => each.element.classList.add("card"));
  return element("div", { class: "pair" }, form.element, output.element);
}

/** Show the code for the inputs, or why there is none. */
function updateCode({ form, code }) {
  const request = form.read(({ message }) => code.showProblem(message));
  if (request) code.show(request);
}

/** Forget what was sent and what came. */
function restart(bench) {
  stopExchange(bench);
  bench.latest = null;
  bench.panel.clear?.();
  bench.form.clearProblem();
  bench.output.clear();
  updateCode(bench);
}

/** Send the request of the fields, or say what is wrong with them. */
function submitForm(bench) {
  const { form, code } = bench;
  form.clearProblem();
  const onProblem = (error) => {
    // A second press of the button, while the first is being answered, finds the message that the first has emptied.
    if (bench.running && error.control === bench.panel.message) return;
    form.showProblem(error);
    code.showProblem(error.message);
  };
  if (!form.read(onProblem)) return;
  dropExchange(bench);
  // Read again: what was under way is in the history now.
  const request = bench.panel.read();
  code.show(request);
  startExchange(bench, request);
}

function setRunning(bench, exchange) {
  bench.running = exchange;
  bench.form.setRunning(Boolean(exchange));
  bench.output.setBusy(Boolean(exchange));
}

/** End the exchange under way; what came of a stream stays. */
function dropExchange(bench) {
  const exchange = bench.running;
  if (!exchange) return;
  setRunning(bench, null);
  exchange.controller.abort();
  exchange.stream?.finish("stopped");
}

/** End the exchange under way, and say so. */
function stopExchange(bench) {
  if (!bench.running) return;
  const { stream } = bench.running;
  dropExchange(bench);
  if (!stream) bench.output.showHint("You stopped it.");
  bench.output.tell("Stopped.");
}

/** Send a request and show its answer, until it is stopped or another one is sent. */
async function startExchange(bench, request) {
  dropExchange(bench);
  const { panel, form, output } = bench;
  const controller = new AbortController();
  const exchange = { request, controller, stream: panel.start?.(request), began: performance.now(), firstAfter: null };
  const isCurrent = () => bench.running === exchange;
  const onEvent = (event) => {
    if (!isCurrent()) return;
    exchange.firstAfter ??= performance.now() - exchange.began;
    exchange.stream.onEvent(event);
  };
  bench.latest = exchange;
  setRunning(bench, exchange);
  output.showFigures({});
  if (exchange.stream) output.show(exchange.stream.content);
  reveal(panel.log ? form.element : output.element);
  output.tell("Sent.");
  try {
    const options = { key: bench.readKey(), signal: controller.signal, onEvent: exchange.stream && onEvent };
    const result = await call(request, options);
    if (isCurrent()) showAnswer(bench, exchange, result);
  } catch (error) {
    if (isCurrent()) showFailure(bench, exchange, error);
  } finally {
    if (isCurrent()) setRunning(bench, null);
  }
}

function showAnswer(bench, exchange, result) {
  const { panel, output } = bench;
  const { request, stream, firstAfter } = exchange;
  const shown = stream ? { summary: stream.finish("whole") } : panel.show(result.answer, request);
  if (!stream) output.show(shown.content);
  const usage = stream ? stream.usage() : result.answer.usage;
  output.showFigures({ ...result, firstAfter, usage });
  output.tell(`Answer after ${Math.round(result.milliseconds)} ms. ${shown.summary}`);
  if (!usage) countTokens(bench, exchange, result);
  bench.form.clearProblem();
}

/** Show an error of the server; also one of this page, which is thrown again for the console. */
function showFailure(bench, { request, stream }, error) {
  const { panel, form, output } = bench;
  stream?.finish("failed");
  const isCall = error instanceof CallError;
  const shown = isCall ? error : new CallError("This page cannot show the answer.", NOT_UNDERSTOOD);
  const retry = () => {
    form.focusSend();
    startExchange(bench, request);
  };
  output.showError(errorBox(shown, panel.advise?.(shown) || advise(shown), retry), Boolean(stream));
  output.showFigures(shown);
  if (shown.status === 401 && output.element.isConnected) bench.onUnauthorized();
  if (!isCall) throw error;
}

/** Tell the tokens of texts, where the answer does not. */
async function countTokens(bench, exchange, result) {
  const { model, panel, lookUp, output } = bench;
  const texts = panel.listTexts?.(exchange.request.body) ?? [];
  if (texts.length === 0) return;
  const counted = await lookUp({ path: `tokenize?model=${encodeURIComponent(model.id)}`, body: { inputs: texts } });
  if (!Array.isArray(counted) || bench.latest !== exchange) return;
  const lengths = counted.map((tokens) => tokens.length);
  const most = model.max_model_len;
  // What the page cannot know is whether the server cuts off the rest, or has the model read it in further windows.
  const inputNote = most && Math.max(...lengths) > most ? `; the model reads at most ${most} at once` : "";
  const usage = { prompt_tokens: lengths.reduce((sum, length) => sum + length, 0) };
  output.showFigures({ ...result, usage, inputNote });
}
