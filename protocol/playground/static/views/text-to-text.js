registerView({
  id: "text-to-text",
  title: "Translate or summarize",
  tasks: ["text2text_generation"],

  create(model) {
    const text = textArea("one two three");
    const maxTokens = numberInput("", { min: 1, step: 1, placeholder: "the model's own" });
    const from = textInput("", { placeholder: "fra_Latn" });
    const to = textInput("", { placeholder: "eng_Latn" });
    return {
      fields: [
        field("Text", text),
        optionalFields(
          field("Maximum tokens", maxTokens),
          field("From language", from, "For multilingual models: the tokenizer's language code"),
          field("To language", to),
        ),
      ],
      read() {
        const inputs = readText(text);
        const parameters = {};
        const newTokens = readNumber(maxTokens);
        if (newTokens) parameters.max_new_tokens = newTokens;
        if (from.value.trim()) parameters.src_lang = readValue(from).trim();
        if (to.value.trim()) parameters.tgt_lang = readValue(to).trim();
        const body = Object.keys(parameters).length ? { inputs, parameters } : { inputs };
        return { path: hubPath(model, "text2text-generation"), body };
      },
      listTexts: ({ inputs }) => [inputs],
      show(answer) {
        const [{ generated_text: words }] = [answer].flat();
        if (!words) return { content: [element("p", {}, "The answer is empty.")], summary: "The answer is empty." };
        return { content: [element("p", { class: "passage wide" }, words)], summary: words };
      },
    };
  },
});
