// Lists that users edit with the keyboard or the mouse: labels, and texts.

/** Tell the form that a program has changed a control, as typing does. */
function dispatchInput(control) {
  control.dispatchEvent(new Event("input", { bubbles: true }));
}

/** Labels as chips: Enter or a comma adds what is typed, Backspace in the empty field removes the last. */
function labelEditor(legend, labels) {
  const chips = element("ul", { class: "chips" });
  const input = textInput("", { placeholder: "Another label", "aria-label": "Add a label" });
  const group = element("fieldset", { class: "field" }, element("legend", { class: "legend" }, legend), chips,
    element("div", { class: "adder" }, input, button("Add", add)));

  function remove(position) {
    labels.splice(position, 1);
    show();
    (chips.querySelectorAll("button")[position] ?? input).focus();
    dispatchInput(group);
  }

  function add() {
    labels = joinLabels(labels, input);
    input.value = "";
    show();
    input.focus();
    dispatchInput(group);
  }

  function show() {
    chips.hidden = labels.length === 0;
    chips.replaceChildren(
      ...labels.map((label, position) =>
        element("li", {}, element("span", {}, label),
          button("×", () => remove(position), { "aria-label": `Remove ${label}` })),
      ),
    );
  }

  input.addEventListener("keydown", (event) => {
    const isPlain = !event.ctrlKey && !event.metaKey && !event.isComposing;
    if (isPlain && (event.key === "Enter" || event.key === ",")) {
      event.preventDefault();
      add();
    } else if (isPlain && event.key === "Backspace" && !event.repeat && input.value === "" && labels.length) {
      labels.pop();
      show();
      dispatchInput(group);
    }
  });
  show();
  return {
    element: group,
    /** The labels, and those that are typed but not added yet. @throws FieldError if there are none */
    read() {
      const all = joinLabels(labels, input);
      if (all.length === 0) throw new FieldError("Add at least one label.", input);
      return all;
    },
  };
}

/** Labels and those typed in a control, between commas: each once, and none that cannot be seen. */
function joinLabels(labels, input) {
  const typed = readValue(input).split(",").map((label) => label.trim());
  return [...new Set([...labels, ...typed.filter(isSeen)])];
}

/** At least one text, each in a field of its own. `noun` is what one of them is called. */
function textList(legend, noun, texts) {
  const rows = element("ol", { class: "texts" });
  const more = button(`Add ${noun}`, () => {
    append("");
    rows.lastElementChild.querySelector("textarea").focus();
    dispatchInput(rows);
  });

  function append(text) {
    const area = textArea(text, { rows: 1 });
    const row = element("li", {}, area, button("×", () => {
      const neighbour = row.nextElementSibling ?? row.previousElementSibling;
      row.remove();
      number();
      (neighbour?.querySelector("textarea") ?? more).focus();
      dispatchInput(rows);
    }, { class: "remove" }));
    rows.append(row);
    number();
  }

  function number() {
    [...rows.children].forEach((row, position) => {
      row.querySelector("textarea").setAttribute("aria-label", `${noun} ${position + 1}`);
      row.querySelector("button").setAttribute("aria-label", `Remove ${noun} ${position + 1}`);
    });
  }

  texts.forEach(append);
  return {
    element: element("fieldset", { class: "field" }, element("legend", { class: "legend" }, legend), rows, more),
    /** The texts, whose numbers are those of their fields. @throws FieldError if there is none, or an empty one */
    read() {
      const areas = [...rows.querySelectorAll("textarea")];
      if (areas.length === 0) throw new FieldError(`Add at least one ${noun}.`, more);
      return areas.map((area) => {
        const name = area.getAttribute("aria-label");
        if (area.value.trim() === "") throw new FieldError(`Fill or remove ${name}: it is empty.`, area);
        return readValue(area);
      });
    },
  };
}
