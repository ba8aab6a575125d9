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
        optionalFields(...generation.fields),
      ],
      read() {
        const body = { model: model.id, prompt: readText(prompt), ...generation.read() };
        return { path: "v1/completions", body };
      },
      start({ body }) {
        const words = element("mark", { class: "added" });
        const passage = element("p", { class: "passage wide" }, shortenPrompt(body.prompt), words);
        const note = element("p", { class: "hint", hidden: true });
        const stream = followStream(words, (choice) => choice?.text);
        return {
          content: [passage, note],
          usage: stream.usage,
          onEvent: stream.onEvent,
          finish(outcome) {
            const ended = stream.finish(outcome);
            note.textContent = ended.note;
            note.hidden = ended.note === "";
            passage.hidden = outcome === "failed" && ended.text === "";
            return ended.text;
          },
        };
      },
    };
  },
});

const SHOWN_PROMPT_CHARACTERS = 300;

/** The end of a prompt, so that its continuation is in sight. */
function shortenPrompt(prompt) {
  const characters = Array.from(prompt);
  if (characters.length <= SHOWN_PROMPT_CHARACTERS) return prompt;
  return `…${characters.slice(-SHOWN_PROMPT_CHARACTERS).join("")}`;
}
