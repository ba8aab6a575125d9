// Calls the server: relative to the page, so that prefixes of proxies are kept.

/**
 * The server's URL with a slash at its end. The page cannot find it by its address alone, whose last name may be the
 * page's or a prefix's: `data-server` has the way from there, with a slash after that name.
 */
const SERVER_URL = new URL(
  document.body.dataset.server,
  `${location.origin}${location.pathname.replace(/\/?$/, "/")}`,
).href;

const EVENT_STREAM = "text/event-stream";

/** The path of a model's own call: a name may have slashes, which stay, and any other characters. */
function encodeName(name) {
  return name.split("/").map(encodeURIComponent).join("/");
}

/** The path of Hugging Face's call of a model; a task is named where it is not the model's own. */
function hubPath(model, task) {
  return `models/${encodeName(model.id)}${task ? `/pipeline/${task}` : ""}`;
}

/** An error of the server, or of the way to it: `status` is 0 without an answer that this page understands. */
class CallError extends Error {
  constructor(message, details = {}) {
    super(message);
    const unknown = { status: 0, retryAfter: null, requestId: null, milliseconds: null, isAnswered: false, advice: "" };
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
 * @param options `key`; `signal`, which aborts it; `timeout` in milliseconds; `onEvent`, which gets each event of a stream.
 * @throws CallError for an error of the server or of the network; AbortError if the signal aborted it.
 */
async function call(request, { key = "", signal, timeout, onEvent } = {}) {
  const began = performance.now();
  const details = { requestId: newRequestId() };
  const fail = (message, more) => {
    throw new CallError(message, { ...details, milliseconds: performance.now() - began, ...more });
  };
  // Headers carry Latin-1.
  if (/[^\x20-\x7e\xa0-\xff]/.test(key)) {
    fail("The key has characters that no header can carry.", { isAnswered: true, advice: "Enter the key without them." });
  }
  const signals = [signal, timeout && AbortSignal.timeout(timeout)].filter(Boolean);
  const init = { signal: AbortSignal.any(signals), cache: "no-store", credentials: "same-origin" };
  const headers = { "X-Request-Id": details.requestId };
  if (key) headers.Authorization = `Bearer ${key}`;
  if (request.body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(init, { method: "POST", body: JSON.stringify(request.body) });
  }
  let response;
  try {
    response = await fetch(new URL(request.path, SERVER_URL), { ...init, headers, referrerPolicy: "no-referrer" });
    const type = response.headers.get("Content-Type") ?? "";
    details.requestId = response.headers.get("X-Request-Id") ?? details.requestId;
    if (!response.ok) {
      const retryAfter = Number(response.headers.get("Retry-After")) || null;
      fail(readMessage(await response.text(), type, response), { status: response.status, retryAfter });
    }
    const streams = onEvent && type.startsWith(EVENT_STREAM);
    const answer = streams ? await readEvents(response.body, onEvent) : await response.json();
    return { answer, status: response.status, ...details, milliseconds: performance.now() - began };
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (error instanceof CallError) throw Object.assign(error, { requestId: error.requestId ?? details.requestId });
    if (error instanceof SyntaxError) return fail("The answer is not JSON.", { isAnswered: true });
    if (error.name === "TimeoutError") return fail(`The server did not answer within ${timeout / 1000} s.`);
    return fail(response ? "The connection broke before the answer's end." : "The server did not answer.");
  }
}

/**
 * Pass each event of a stream of server-sent events to `onEvent`, parsed.
 *
 * @throws CallError for an event of an error, or if the stream ends without `[DONE]` or the reason of its end.
 */
async function readEvents(body, onEvent) {
  let rest = "";
  let isWhole = false;
  for await (const piece of iterate(body.pipeThrough(new TextDecoderStream()))) {
    const blocks = (rest + piece).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").filter((line) => line.startsWith("data:"));
      const data = lines.map((line) => line.slice(5).trimStart()).join("\n");
      if (data === "[DONE]") isWhole = true;
      if (data === "" || data === "[DONE]") continue;
      const event = JSON.parse(data);
      if (event.error) {
        const status = Number.isInteger(event.error.code) ? event.error.code : 500;
        throw new CallError(describeError(event), { status });
      }
      isWhole ||= Boolean(event.choices?.some(({ finish_reason: reason }) => reason));
      onEvent(event);
    }
  }
  if (!isWhole) throw new CallError("The answer broke off.", { advice: "Try again." });
  return null;
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

/** The message of an answer that is an error; the page of a proxy has none. */
function readMessage(text, type, { status, statusText }) {
  try {
    return describeError(JSON.parse(text));
  } catch {
    const isPlain = type.startsWith("text/plain") && text.trim();
    return isPlain ? text.slice(0, 500) : statusText || `The server or a proxy answered with status ${status}.`;
  }
}

/** The message in an error of any of the protocols. */
function describeError(body) {
  const found = body.error?.message ?? body.error ?? body.message ?? body.detail;
  return typeof found === "string" ? found : JSON.stringify(found ?? body);
}

/** Whether the same request may succeed later. */
function isTemporary(error) {
  return [0, 429, 500, 502, 503, 504].includes(error.status);
}

/** What a user can do about an error. */
function advise(error) {
  const wait = error.retryAfter ? `in ${error.retryAfter} s` : "in a moment";
  if (error.advice) return error.advice;
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
    case 500:
    case 502:
      return `Try again ${wait}. If the error stays, give the request id to the operator: the server's log names it.`;
    case 503:
      return `The model is not ready, or the server has too many requests. Try again ${wait}.`;
    case 504:
      return `The model took too long. Send less, or try again ${wait}.`;
    default:
      return "Give the request id to the operator: the server's log names it.";
  }
}
