// What the views of models that generate share.

/** The fields of a request that streams. */
function readGeneration(most, temperature) {
  const fields = { max_tokens: readNumber(most), temperature: readNumber(temperature) };
  const given = Object.entries(fields).filter(([, value]) => value !== undefined);
  return { ...Object.fromEntries(given), stream: true, stream_options: { include_usage: true } };
}

/** Why a text ended, if not by itself. */
function describeEnd(outcome, reason) {
  if (outcome === "stopped") return "You stopped it.";
  if (outcome === "failed") return "It broke off.";
  return reason === "length" ? "It has as many tokens as you allow." : "";
}
