// Builds elements. Texts of users and servers are only ever text nodes or values, never markup.

let lastId = 0;

/** A new id for an element. */
function newId() {
  lastId += 1;
  return `e${lastId}`;
}

/**
 * An element with attributes and children.
 *
 * Functions become listeners (`onclick`), `css` sets custom properties, and `value` and `checked` are properties.
 * Strings and numbers among the children become text; null and undefined are left out.
 */
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (name === "css") Object.entries(value).forEach(([key, each]) => node.style.setProperty(key, each));
    else if (name === "value" || name === "checked") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** A button that submits no form. */
function button(label, onclick, attributes = {}) {
  return element("button", { type: "button", onclick, ...attributes }, label);
}

/** Put a text into the clipboard, and tell whether that worked; pages without TLS have no `navigator.clipboard`. */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const focused = document.activeElement;
    const area = element("textarea", { class: "unseen", value: text });
    document.body.append(area);
    // This takes the focus.
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    focused?.focus({ preventScroll: true });
    return copied;
  }
}
