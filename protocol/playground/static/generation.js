// What the views of models that generate share.

/** The fields of a request that streams, by their controls. */
function readGeneration(maxTokens, temperature) {
  const fields = { max_tokens: readNumber(maxTokens), temperature: readNumber(temperature) };
  const filled = Object.entries(fields).filter(([, value]) => value !== undefined);
  return { ...Object.fromEntries(filled), stream: true, stream_options: { include_usage: true } };
}

/** Why a text ended, if not by itself, or why there is none. */
function describeEnd(text, outcome, reason) {
  if (outcome === "stopped") return "You stopped it.";
  if (outcome === "failed") return "It broke off.";
  if (reason === "length") return "It has as many tokens as you allow.";
  return text === "" ? "The answer is empty." : "";
}
