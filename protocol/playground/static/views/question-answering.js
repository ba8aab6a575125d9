registerView({
  id: "question-answering",
  title: "Answer questions",
  tasks: ["question_answering"],

  create(model) {
    const question = textInput("Where does Tom live?");
    const context = textArea("Sarah lives in Munich. Tom lives in Berlin, and likes to travel to Munich.", { rows: 5 });
    const most = numberInput("3", { min: 1, max: 1000, step: 1 });
    const impossible = checkBox("The context may have no answer");
    return {
      fields: [
        field("Question", question),
        field("Context", context),
        options(field("Answers", most), impossible.element),
      ],
      read() {
        const inputs = { question: readText(question), context: readText(context) };
        const parameters = { top_k: readNumber(most) ?? 1 };
        if (impossible.box.checked) parameters.handle_impossible_answer = true;
        return { path: hubPath(model), body: { inputs, parameters } };
      },
      listTexts: ({ inputs }) => [inputs.question, inputs.context],
      show(answer, { body }) {
        const answers = [answer].flat();
        const passage = element("p", { class: "passage wide" });
        const characters = Array.from(body.inputs.context);
        const mark = ({ start, end }) =>
          passage.replaceChildren(
            sliceCharacters(characters, 0, start),
            start < end ? element("mark", { class: "slot" }, sliceCharacters(characters, start, end)) : "",
            sliceCharacters(characters, end),
          );
        const rows = answers.map((each) => ({ ...each, label: each.answer || "(no answer)" }));
        if (rows.length === 0) return { content: [element("p", {}, "No answer.")], summary: "No answer." };
        mark(answers[0]);
        const summary = `${rows[0].label}: ${formatScore(rows[0].score)}`;
        return { content: [passage, ...choosableBars(rows, "Answers, best first", "answers", mark)], summary };
      },
    };
  },
});
