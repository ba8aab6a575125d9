registerView({
  id: "completion",
  title: "Continue a text",
  tasks: ["text_generation"],
  capability: "completions",

  create(model) {
    const prompt = textArea("The three primary colors are");
    const generation = generationFields("64");
    return {
      fields: [
        field("Text", prompt),
        options(...generation.fields),
      ],
      read() {
        const body = { model: model.id, prompt: readText(prompt), ...generation.read() };
        return { path: "v1/completions", body };
      },
      start({ body }) {
        const words = element("mark", { class: "added" });
        const note = element("p", { class: "hint" });
        const stream = followStream(words, (choice) => choice?.text);
        return {
          content: [element("p", { class: "passage wide" }, body.prompt, words), note],
          usage: stream.usage,
          onEvent: stream.onEvent,
          finish(outcome) {
            const ended = stream.finish(outcome);
            note.textContent = ended.note;
            return ended.text;
          },
        };
      },
    };
  },
});
