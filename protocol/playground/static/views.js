// The registry of views. A view is a way to use a model; each is one file in views/, which calls `registerView`.

const VIEWS = [];

/**
 * @typedef {object} View
 * @property {string} id its name in the page's address
 * @property {string} title
 * @property {string[]} tasks the tasks of the models that it is for
 * @property {string[]} [alsoTasks] the tasks of models that can do it too
 * @property {string} [capability] the call of OpenAI's API that the model must answer
 * @property {(model: object, lookUp: LookUp) => Panel} create makes its panel for a model
 *
 * @callback LookUp asks the server for something beside the answer
 * @param {{path: string, body: object}} request
 * @returns {Promise<object>} the answer; {} for an error
 *
 * @typedef {object} Panel
 * @property {(Element|null)[]} fields what the user fills in; null for one that the model does not need
 * @property {() => {path: string, body: object}} read the request of the fields; throws FieldError
 * @property {(answer: object, request: object) => Shown} [show] what is shown of an answer that came as a whole
 * @property {(request: object) => Stream} [start] for answers that come in pieces, instead of `show`; the request of
 *   one that failed may come again
 * @property {(body: object) => string[]} [listTexts] the texts of a request whose tokens the answer does not
 *   tell; none where the model reads other tokens than these texts have, such as those of pairs
 * @property {Element} [log] what was said before: it is shown above the fields
 * @property {Element} [message] the field in which Enter sends
 * @property {(error: CallError) => string} [advise] what the user can do about an error, if the view knows it better
 * @property {() => void} [clear] forgets what came before
 *
 * @typedef {object} Shown
 * @property {(Element|null)[]} content
 * @property {string} summary one sentence, which screen readers say
 *
 * @typedef {object} Stream
 * @property {Element[]} content
 * @property {(event: object) => void} onEvent changes the content by an event
 * @property {() => object} usage the tokens, as OpenAI's API counts them
 * @property {(outcome: "whole" | "stopped" | "failed") => string} finish called at the end; returns the summary
 */

/** @param {View} view */
function registerView(view) {
  VIEWS.push(view);
}

/** The views for a model; first those that are for its task. */
function listViews(model) {
  const served = VIEWS.filter(({ capability }) => !capability || model.capabilities?.includes(capability));
  return [
    ...served.filter((view) => view.tasks.includes(model.task)),
    ...served.filter((view) => view.alsoTasks?.includes(model.task)),
  ];
}

/** An input that cannot be sent; `control` gets the focus. */
class FieldError extends Error {
  constructor(message, control) {
    super(message);
    this.control = control;
  }
}

/** What a control's label says. */
const nameField = (control) => control.labels?.[0]?.textContent ?? "The field";

/** The text in a control. @throws FieldError if it is empty */
function readText(control) {
  if (control.value.trim() === "") throw new FieldError(`${nameField(control)} is empty.`, control);
  return readValue(control);
}

/** The number in a control; undefined if it is empty. @throws FieldError if the control does not allow it */
function readNumber(control) {
  if (control.value.trim() === "" && control.validity.valid) return undefined;
  if (!control.validity.valid) throw new FieldError(`${nameField(control)}: ${control.validationMessage}`, control);
  return Number(control.value);
}
