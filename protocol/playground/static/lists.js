// Lists that users edit with the keyboard or the mouse: labels, and texts.

/** Tell the form that a list has changed. */
function noteChange(control) {
  control.dispatchEvent(new Event("input", { bubbles: true }));
}

/** Labels as chips: Enter or a comma adds what is typed, Backspace in the empty field removes the last. */
function labelEditor(legend, labels) {
  const chips = element("ul", { class: "chips" });
  const input = textInput("", { placeholder: "Another label", "aria-label": "Add a label" });
  const group = element("fieldset", { class: "field" }, element("legend", { class: "legend" }, legend), chips,
    element("div", { class: "adder" }, input, button("Add", () => add(input.value))));

  function remove(position) {
    labels.splice(position, 1);
    show();
    (chips.querySelectorAll("button")[position] ?? input).focus();
    noteChange(group);
  }

  function add(text) {
    labels.push(...text.split(",").map((label) => label.trim()).filter((label) => label && !labels.includes(label)));
    input.value = "";
    show();
    input.focus();
    noteChange(group);
  }

  function show() {
    chips.hidden = labels.length === 0;
    chips.replaceChildren(
      ...labels.map((label, position) =>
        element("li", {}, label, button("×", () => remove(position), { "aria-label": `Remove ${label}` })),
      ),
    );
  }

  input.addEventListener("keydown", (event) => {
    const isPlain = !event.ctrlKey && !event.metaKey && !event.isComposing;
    if (isPlain && (event.key === "Enter" || event.key === ",")) {
      event.preventDefault();
      add(input.value);
    } else if (isPlain && event.key === "Backspace" && input.value === "" && labels.length) {
      labels.pop();
      show();
      noteChange(group);
    }
  });
  show();
  return {
    element: group,
    /** The labels, and what is typed but not added yet. @throws FieldError if there are none */
    read() {
      const typed = input.value.trim();
      const all = typed && !labels.includes(typed) ? [...labels, typed] : [...labels];
      if (all.length === 0) throw new FieldError("Add at least one label.", input);
      return all;
    },
  };
}

/** Texts, each in a field of its own. `noun` is what one of them is called. */
function textList(legend, noun, texts, least) {
  const rows = element("ol", { class: "texts" });
  const more = button(`Add ${noun}`, () => {
    append("");
    rows.lastElementChild.querySelector("textarea").focus();
    noteChange(rows);
  });

  function append(text) {
    const area = textArea(text, { rows: 1 });
    const row = element("li", {}, area, button("×", () => {
      const neighbour = row.nextElementSibling ?? row.previousElementSibling;
      row.remove();
      number();
      (neighbour?.querySelector("textarea") ?? more).focus();
      noteChange(rows);
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
    /** The texts that are not empty. @throws FieldError if there are too few */
    read() {
      const given = [...rows.querySelectorAll("textarea")].map((area) => area.value).filter((text) => text.trim());
      if (given.length < least) {
        const empty = [...rows.querySelectorAll("textarea")].find((area) => !area.value.trim()) ?? more;
        throw new FieldError(`Give at least ${least} ${noun}${least > 1 ? "s" : ""}.`, empty);
      }
      return given;
    },
  };
}
