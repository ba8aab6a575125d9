registerView({
  id: "text-to-text",
  title: "Translate or summarize",
  tasks: ["text2text_generation"],

  create(model) {
    const text = textArea("one two three");
    const most = numberInput("", { min: 1, step: 1, placeholder: "the model's own" });
    const from = textInput("", { placeholder: "fra_Latn" });
    const to = textInput("", { placeholder: "eng_Latn" });
    return {
      fields: [
        field("Text", text),
        options(
          field("Most tokens", most),
          field("From language", from, "Only for models of many languages, by the tokenizer's names"),
          field("To language", to),
        ),
      ],
      read() {
        const inputs = readText(text);
        const parameters = {};
        const tokens = readNumber(most);
        if (tokens) parameters.max_new_tokens = tokens;
        if (from.value.trim()) parameters.src_lang = from.value.trim();
        if (to.value.trim()) parameters.tgt_lang = to.value.trim();
        const body = Object.keys(parameters).length ? { inputs, parameters } : { inputs };
        return { path: hubPath(model, "text2text-generation"), body };
      },
      listTexts: ({ inputs }) => [inputs],
      show(answer) {
        const [{ generated_text: words }] = [answer].flat();
        return { content: [element("p", { class: "passage wide" }, words)], summary: words };
      },
    };
  },
});
