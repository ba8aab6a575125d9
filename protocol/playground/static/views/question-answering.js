registerView({
  id: "question-answering",
  title: "Answer questions",
  tasks: ["question_answering"],

  create(model) {
    const question = textInput("Where does Tom live?");
    const context = textArea("Sarah lives in Munich. Tom lives in Berlin, and likes to travel to Munich.", { rows: 5 });
    const topN = numberInput("3", { min: 1, max: 1000, step: 1 });
    const impossible = checkBox("The context may have no answer");
    return {
      fields: [
        field("Question", question),
        field("Context", context),
        optionalFields(field("Number of answers", topN), impossible.element),
      ],
      read() {
        const inputs = { question: readText(question), context: readText(context) };
        const parameters = { top_k: readNumber(topN) ?? 1 };
        if (impossible.box.checked) parameters.handle_impossible_answer = true;
        return { path: hubPath(model), body: { inputs, parameters } };
      },
      show(answer, { body }) {
        const answers = [answer].flat();
        const passage = element("p", { class: "passage wide" });
        const mark = (...chosen) => {
          const spans = chosen.map(({ start, end }) => ({ start, end, attributes: { class: "slot" } }));
          passage.replaceChildren(...markSpans(body.inputs.context, spans));
        };
        mark(...answers.slice(0, 1));
        const rows = answers.map((each) => ({ ...each, label: each.answer || "(no answer)" }));
        const choices = choosableBars(rows, "Answers, best first", "answers", mark);
        return { content: [passage, ...choices], summary: describeBest(rows, "answers") };
      },
    };
  },
});
