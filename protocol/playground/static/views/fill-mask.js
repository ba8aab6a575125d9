registerView({
  id: "fill-mask",
  title: "Fill gaps",
  tasks: ["fill_mask"],

  create(model, lookUp) {
    const example = (mask) => `The capital of France is ${mask}.`;
    let mask = "[MASK]";
    const text = textArea(example(mask));
    const topN = numberInput("5", { min: 1, max: 1000, step: 1 });
    const insert = button(`Insert ${mask}`, () => {
      text.setRangeText(mask, text.selectionStart, text.selectionEnd, "end");
      text.focus();
      dispatchInput(text);
    });
    lookUp({ path: `v2/models/${encodeName(model.id)}` }).then(({ properties }) => {
      if (!properties?.mask_token || properties.mask_token === mask) return;
      if (text.value === example(mask)) text.value = example(properties.mask_token);
      mask = properties.mask_token;
      insert.textContent = `Insert ${mask}`;
      dispatchInput(text);
    });
    return {
      fields: [field("Text with gaps", text), insert, optionalFields(field("Candidates for each gap", topN))],
      read() {
        const inputs = readText(text);
        if (!inputs.includes(mask)) throw new FieldError(`The text has no gap: insert ${mask}.`, text);
        const topK = readNumber(topN);
        return { path: hubPath(model), body: { inputs, ...(topK ? { parameters: { top_k: topK } } : {}) } };
      },
      listTexts: ({ inputs }) => [inputs],
      show(answer, { body }) {
        const gaps = Array.isArray(answer[0]) ? answer : [answer];
        const pieces = body.inputs.split(mask);
        const slots = gaps.map(() => element("mark", { class: "slot" }));
        const rest = pieces.slice(gaps.length + 1).map((piece) => mask + piece);
        const passage = element("p", { class: "passage wide" },
          slots.flatMap((slot, gap) => [pieces[gap], slot]), pieces[gaps.length] ?? "", rest);
        const tables = gaps.flatMap((candidates, gap) => {
          const fill = ({ token_str: token }) => {
            // Tokens that begin a word may have a space before them, parts of words have ##.
            const isApart = gap === 0 && pieces[0] === "" ? true : /\s$/.test(pieces[gap]);
            slots[gap].textContent = (isApart ? token.trimStart() : token).replace(/^##/, "");
          };
          if (candidates.length) fill(candidates[0]);
          else slots[gap].textContent = mask;
          const title = gaps.length > 1 ? [element("h3", {}, `Gap ${gap + 1}`)] : [];
          const rows = candidates.map((each) => ({ ...each, label: each.token_str }));
          return [...title, ...choosableBars(rows, `Candidates for gap ${gap + 1}`, "candidates", fill)];
        });
        const use = button("Use this text", () => {
          text.value = passage.textContent;
          text.focus();
          dispatchInput(text);
        });
        return { content: [passage, ...tables, use], summary: passage.textContent };
      },
    };
  },
});
