// Calls the server: relative to the page, so that prefixes of proxies are kept.

/** The server's URL with a slash at its end: the page is at it, or at `playground` below it. */
const SERVER_URL = (() => {
  const path = location.pathname.replace(/\/playground\/?$/, "").replace(/\/?$/, "/");
  return `${location.origin}${path}`;
})();

const EVENT_STREAM = "text/event-stream";

/** The path of a model's own call: a name may have slashes, which stay, and any other characters. */
function encodeName(name) {
  return name.split("/").map(encodeURIComponent).join("/");
}

/** The path of Hugging Face's call of a model; a task is named where it is not the model's own. */
function hubPath(model, task) {
  return `models/${encodeName(model.id)}${task ? `/pipeline/${task}` : ""}`;
}

/** An error of the server, or of the way to it. `status` is 0 if there was no answer that this page understands. */
class CallError extends Error {
  constructor(message, details = {}) {
    super(message);
    const unknown = { status: 0, retryAfter: null, requestId: null, milliseconds: null, isAnswered: false };
    Object.assign(this, unknown, details);
  }
}

/** A random id, by which the server's log names the request. */
function newRequestId() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return `playground-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/**
 * Send a request and return `{answer, status, requestId, milliseconds}`.
 *
 * @param request `{path, body}`; without a body it is a GET.
 * @param options `key`; `signal`, which aborts it; `onEvent`, which gets each event of a stream.
 * @throws CallError for an error of the server or of the network; AbortError if the signal aborted it.
 */
async function call(request, { key = "", signal, onEvent } = {}) {
  const headers = { "X-Request-Id": newRequestId() };
  if (key) headers.Authorization = `Bearer ${key}`;
  const init = { headers, signal, cache: "no-store", credentials: "same-origin", referrerPolicy: "no-referrer" };
  if (request.body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(init, { method: "POST", body: JSON.stringify(request.body) });
  }
  const began = performance.now();
  const details = () => ({ milliseconds: performance.now() - began });
  try {
    const response = await fetch(new URL(request.path, SERVER_URL), init);
    const requestId = response.headers.get("X-Request-Id");
    const { status } = response;
    if (!response.ok) {
      const message = readMessage(await response.text()) || response.statusText || `status ${status}`;
      const retryAfter = Number(response.headers.get("Retry-After")) || null;
      throw new CallError(message, { status, requestId, retryAfter, ...details() });
    }
    if (onEvent && response.headers.get("Content-Type")?.startsWith(EVENT_STREAM)) {
      await readEvents(response.body, onEvent);
      return { answer: null, status, requestId, ...details() };
    }
    return { answer: await response.json(), status, requestId, ...details() };
  } catch (error) {
    if (error instanceof CallError || error.name === "AbortError") throw error;
    const isAnswered = error instanceof SyntaxError;
    const message = isAnswered ? "The answer is not JSON." : "The server did not answer.";
    throw new CallError(message, { isAnswered, ...details() });
  }
}

/** Pass each event of a stream of server-sent events to `onEvent`, parsed; `[DONE]` ends the stream. */
async function readEvents(body, onEvent) {
  let rest = "";
  for await (const piece of iterate(body.pipeThrough(new TextDecoderStream()))) {
    const blocks = (rest + piece).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").filter((line) => line.startsWith("data:"));
      const data = lines.map((line) => line.slice(5).trimStart()).join("\n");
      if (data === "" || data === "[DONE]") continue;
      const event = JSON.parse(data);
      if (event.error) throw new CallError(readMessage(data), { status: event.error.code || 500 });
      onEvent(event);
    }
  }
}

/** The pieces of a stream; not every browser iterates over streams itself. */
async function* iterate(stream) {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The message in the body of an error of any of the protocols. */
function readMessage(text) {
  try {
    const body = JSON.parse(text);
    const found = body.error?.message ?? body.error ?? body.message ?? body.detail;
    return typeof found === "string" ? found : JSON.stringify(found ?? body);
  } catch {
    return text.slice(0, 500);
  }
}

/** What a user can do about an error. */
function advise(error) {
  const wait = error.retryAfter ? `in ${error.retryAfter} s` : "in a moment";
  switch (error.status) {
    case 0:
      return error.isAnswered
        ? "Check that this page and the server have the same version, and what is between them."
        : "Check that the server runs and that the network reaches it.";
    case 400:
    case 422:
      return "Change the inputs as the message says.";
    case 401:
      return "Enter the server's key under “API key”.";
    case 403:
      return "The key does not allow this. Ask the operator.";
    case 404:
      return "Refresh the list: the model may be gone.";
    case 413:
      return "Send less: shorter or fewer texts.";
    case 429:
      return `The server has too many requests. Try again ${wait}.`;
    case 503:
      return `The model is not ready, or the server has too many requests. Try again ${wait}.`;
    case 504:
      return `The model took too long. Send less, or try again ${wait}.`;
    default:
      return "Give the request id to the operator: the server's log names it.";
  }
}
