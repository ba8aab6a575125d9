registerView({
  id: "chat",
  title: "Chat",
  tasks: ["text_generation"],
  capability: "chat/completions",

  create(model) {
    const system = textArea("", { rows: 2 });
    const message = textArea("Sarah lives in Munich. Where does Sarah live?");
    const generation = generationFields("256");
    const log = element("div", { class: "chat wide", role: "group", "aria-label": "Messages", tabindex: "0" });
    let history = [];
    // The bubbles of a turn that broke off: it is no part of the history, and the next turn takes its place.
    let broken = [];

    const append = (role, text) => {
      const words = element("p", {}, text);
      const who = element("span", { class: "who" }, role === "user" ? "You" : model.id);
      const bubble = element("div", { class: `turn ${role}` }, who, words);
      log.append(bubble);
      return { bubble, words };
    };
    const removeBroken = () => {
      broken.forEach((bubble) => bubble.remove());
      broken = [];
    };

    return {
      log,
      message,
      fields: [
        field("Message", message),
        optionalFields(...generation.fields, field("Instructions (system prompt)", system)),
      ],
      read() {
        const messages = [...history, { role: "user", content: readText(message) }];
        if (system.value.trim()) messages.unshift({ role: "system", content: readValue(system) });
        const body = { model: model.id, messages, ...generation.read() };
        return { path: "v1/chat/completions", body };
      },
      advise: ({ status }) => (status === 400 ? FULL_CONTEXT_ADVICE : ""),
      clear() {
        history = [];
        broken = [];
        log.replaceChildren();
      },
      start({ body }) {
        removeBroken();
        const turns = history;
        const question = body.messages.at(-1);
        const asker = append("user", question.content).bubble;
        const { bubble, words } = append("assistant", "");
        // A request that is sent again may find another message there.
        if (readValue(message) === question.content) message.value = "";
        const stream = followStream(words, (choice) => choice?.delta?.content);
        const follow = () => (log.scrollTop = log.scrollHeight);
        follow();
        return {
          content: [log],
          usage: stream.usage,
          onEvent(event) {
            const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
            stream.onEvent(event);
            if (isAtEnd) follow();
          },
          finish(outcome) {
            const { text, note } = stream.finish(outcome);
            if (note) bubble.append(element("p", { class: "hint" }, note));
            if (outcome === "whole" || (outcome === "stopped" && text !== "")) {
              turns.push(question, { role: "assistant", content: text });
            } else {
              message.value ||= question.content;
              broken = [asker, bubble];
              if (text === "") removeBroken();
            }
            return text;
          },
        };
      },
    };
  },
});

// A chat that grew too long is the usual reason of a refusal.
const FULL_CONTEXT_ADVICE =
  "If the conversation is too long, start a new one or allow fewer tokens. Else change the inputs as the message says.";
