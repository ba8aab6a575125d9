registerView({
  id: "classification",
  title: "Classify",
  tasks: ["sequence_classification"],
  alsoTasks: ["text_ranking", "zero_shot_classification"],

  create(model) {
    const text = textArea("I love this. It works, and it is fast.");
    const second = textArea("", { rows: 2 });
    const scoring = dropDown([
      ["", "the model's own"],
      ["softmax", "softmax: classes exclude each other"],
      ["sigmoid", "sigmoid: each class on its own"],
      ["none", "none: the model's raw scores"],
    ]);
    const isClassifier = model.task === "sequence_classification";
    if (!isClassifier) second.value = "This is praise.";
    const secondField = field("Second text", second, isClassifier ? "Only for models that compare two texts" : null);

    return {
      fields: [
        field("Text", text),
        isClassifier ? null : secondField,
        optionalFields(isClassifier ? secondField : null, field("Score function", scoring)),
      ],
      read() {
        const first = readText(text);
        const inputs = second.value ? { text: first, text_pair: readValue(second) } : first;
        const parameters = scoring.value ? { parameters: { function_to_apply: scoring.value } } : {};
        return { path: hubPath(model, isClassifier ? "" : "text-classification"), body: { inputs, ...parameters } };
      },
      listTexts: ({ inputs }) => (typeof inputs === "string" ? [inputs] : []),
      show(answer) {
        // A list for each text.
        const [classes] = answer;
        return { content: bars(classes, "Classes, best first"), summary: describeBest(classes, "classes") };
      },
    };
  },
});
