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

/**
 * An error of the server, or of the way to it: `status` is 0 without an answer that this page understands.
 *
 * `title` is its kind in a few words; `advice`, if not empty, is what the user can do, else the status tells that.
 */
class CallError extends Error {
  constructor(message, details = {}) {
    super(message);
    const title = details.status ? `Error ${details.status}` : "No answer";
    const unknown = { status: 0, retryAfter: null, requestId: null, milliseconds: null, title, advice: "" };
    Object.assign(this, unknown, details);
  }
}

/** The details of a CallError for an answer that is whole and has an unknown form. */
const NOT_UNDERSTOOD = {
  title: "Not understood",
  advice: "Check that this page and the server have the same version, and what is between them.",
};

/** A random id, by which the server's access log names the request. */
function newRequestId() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return `playground-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/**
 * Send a request and return `{answer, requestId, milliseconds}`.
 *
 * @param request `{path, body}`; without a body it is a GET.
 * @param settings `key`; `signal`, which aborts it; `timeout` in milliseconds; `onEvent`, which gets each event of a
 *   stream and whose errors are thrown as they are.
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
    const advice = "Enter the key without them.";
    fail("The key has characters that no header can carry.", { title: "Not sent", advice });
  }
  const signals = [signal, timeout && AbortSignal.timeout(timeout)].filter(Boolean);
  const headers = { "X-Request-Id": details.requestId };
  const init = { signal: AbortSignal.any(signals), headers, cache: "no-store", credentials: "same-origin" };
  if (key) headers.Authorization = `Bearer ${key}`;
  if (request.body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(init, { method: "POST", body: JSON.stringify(request.body) });
  }
  let response;
  /** What the network gives; only its errors become CallErrors, not those of this page's code. */
  const receive = async (promise) => {
    try {
      return await promise;
    } catch (error) {
      if (error.name === "AbortError") throw error;
      if (error instanceof SyntaxError) return fail("The answer is not JSON.", NOT_UNDERSTOOD);
      if (error.name === "TimeoutError") return fail(`The server did not answer within ${timeout / 1000} s.`);
      if (!response) return fail("The server did not answer.");
      return fail("The connection broke before the answer's end.", { title: "Answer incomplete" });
    }
  };
  response = await receive(fetch(new URL(request.path, SERVER_URL), { ...init, referrerPolicy: "no-referrer" }));
  const type = response.headers.get("Content-Type") ?? "";
  details.requestId = response.headers.get("X-Request-Id") ?? details.requestId;
  if (!response.ok) {
    const retryAfter = Number(response.headers.get("Retry-After")) || null;
    fail(readMessage(await receive(response.text()), type, response), { status: response.status, retryAfter });
  }
  let answer = null;
  if (onEvent && type.startsWith(EVENT_STREAM)) {
    for await (const event of readEvents(response.body, receive, fail)) onEvent(event);
  } else answer = await receive(response.json());
  return { answer, ...details, milliseconds: performance.now() - began };
}

/**
 * The events of a stream of server-sent events, parsed.
 *
 * @param receive takes each promise of the network, and of parsing.
 * @param fail throws, for an event of an error, or if the stream ends without `[DONE]` or the reason of its end.
 */
async function* readEvents(body, receive, fail) {
  const parse = async (data) => JSON.parse(data);
  let rest = "";
  let isWhole = false;
  for await (const piece of iterate(body.pipeThrough(new TextDecoderStream()), receive)) {
    const blocks = (rest + piece).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").filter((line) => line.startsWith("data:"));
      const data = lines.map((line) => line.slice(5).trimStart()).join("\n");
      if (data === "[DONE]") isWhole = true;
      if (data === "" || data === "[DONE]") continue;
      const event = await receive(parse(data));
      if (event.error) {
        fail(describeError(event), { status: Number.isInteger(event.error.code) ? event.error.code : 500 });
      }
      isWhole ||= Boolean(event.choices?.some(({ finish_reason: reason }) => reason));
      yield event;
    }
  }
  if (!isWhole) fail("The answer broke off.", { title: "Answer incomplete", advice: "Try again." });
}

/** The pieces of a stream, each taken by `receive`; not every browser iterates over streams itself. */
async function* iterate(stream, receive) {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await receive(reader.read());
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
      return "Check that the server runs and that the network reaches it.";
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
      return `Try again ${wait}. If the error stays, tell the operator the request id.`;
    case 503:
      return `The model is not ready, or the server has too many requests. Try again ${wait}.`;
    case 504:
      return `The model took too long. Send less, or try again ${wait}.`;
    default:
      return "Tell the operator the request id.";
  }
}
