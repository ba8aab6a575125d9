// What the views of models that generate share.

/** The fields that every request for a text has, with this number of tokens at first. */
function generationFields(tokens) {
  const maxTokens = numberInput(tokens, { min: 1, step: 1 });
  const temperature = numberInput("0", { min: 0, max: 2, step: "any" });
  return {
    fields: [field("Maximum tokens", maxTokens), field("Temperature", temperature, "0: always the likeliest token")],
    /** The members of the body, which asks for a stream. */
    read() {
      const members = { max_tokens: readNumber(maxTokens), temperature: readNumber(temperature) };
      const filled = Object.entries(members).filter(([, value]) => value !== undefined);
      return { ...Object.fromEntries(filled), stream: true, stream_options: { include_usage: true } };
    },
  };
}

/** Append what the events of a stream add to a text. `readAdded` returns that of a choice, which may be undefined. */
function followStream(words, readAdded) {
  let usage, reason;
  return {
    usage: () => usage,
    onEvent(event) {
      const [choice] = event.choices ?? [];
      words.append(readAdded(choice) ?? "");
      reason = choice?.finish_reason ?? reason;
      usage = event.usage ?? usage;
    },
    /** The whole text, and why it ended, if not by itself. */
    finish(outcome) {
      words.normalize();
      const text = words.textContent;
      return { text, note: describeEnd(text, outcome, reason, usage) };
    },
  };
}

/** Why a text ended, if not by itself, or why there is none. */
function describeEnd(text, outcome, reason, usage) {
  if (outcome === "stopped") return "You stopped it.";
  // Where nothing came, the error says all.
  if (outcome === "failed") return text === "" ? "" : "The answer was interrupted.";
  if (reason === "length") return `Stopped at the maximum of ${usage ? `${usage.completion_tokens} ` : ""}tokens.`;
  return text === "" ? "The answer is empty." : "";
}
