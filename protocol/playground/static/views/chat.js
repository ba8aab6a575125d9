registerView({
  id: "chat",
  title: "Chat",
  tasks: ["text_generation"],
  capability: "chat/completions",

  create(model) {
    const system = textArea("", { rows: 2 });
    const message = textArea("Sarah lives in Munich. Where does Sarah live?");
    const most = numberInput("256", { min: 1, step: 1 });
    const temperature = numberInput("0", { min: 0, max: 2, step: "any" });
    const log = element("div", { class: "chat wide", role: "group", "aria-label": "Conversation", tabindex: "0" });
    let history = [];

    const add = (role, text) => {
      const words = element("p", {}, text);
      const bubble = element("div", { class: `turn ${role}` },
        element("span", { class: "who" }, role === "user" ? "You" : model.id), words);
      log.append(bubble);
      return { bubble, words };
    };

    return {
      fields: [
        field("Message", message),
        options(
          field("Most tokens", most),
          field("Temperature", temperature, "0: always the likeliest token"),
          field("Instructions (system prompt)", system),
        ),
      ],
      read() {
        const messages = [...history, { role: "user", content: readText(message) }];
        if (system.value.trim()) messages.unshift({ role: "system", content: system.value });
        const body = { model: model.id, messages, ...readGeneration(most, temperature) };
        return { path: "v1/chat/completions", body };
      },
      clear() {
        history = [];
        log.replaceChildren();
      },
      start({ body }) {
        const turns = history;
        const asked = body.messages.at(-1);
        add("user", asked.content);
        const { bubble, words } = add("assistant", "");
        message.value = "";
        let usage, reason;
        const follow = () => (log.scrollTop = log.scrollHeight);
        follow();
        return {
          content: [log],
          usage: () => usage,
          onEvent(event) {
            const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
            const [choice] = event.choices ?? [];
            words.append(choice?.delta?.content ?? "");
            reason = choice?.finish_reason ?? reason;
            usage = event.usage ?? usage;
            if (isAtEnd) follow();
          },
          finish(outcome) {
            words.normalize();
            const text = words.textContent;
            if (text === "" && outcome === "failed") {
              bubble.previousElementSibling.remove();
              bubble.remove();
              message.value ||= asked.content;
              return "";
            }
            turns.push(asked, { role: "assistant", content: text });
            const note = describeEnd(outcome, reason);
            if (note) bubble.append(element("p", { class: "hint" }, note));
            return text;
          },
        };
      },
    };
  },
});
