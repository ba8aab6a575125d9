registerView({
  id: "zero-shot",
  title: "Classify by labels",
  tasks: ["zero_shot_classification"],

  create(model) {
    const text = textArea("The new phone has a better camera and a faster chip.");
    const labels = labelEditor("Labels", ["technology", "politics", "cooking"]);
    const template = textInput("", { placeholder: "This example is {}." });
    const several = checkBox("Several labels may be true");
    return {
      fields: [
        field("Text", text),
        labels.element,
        several.element,
        optionalFields(field("Hypothesis", template, "A sentence with {} where the label goes")),
      ],
      read() {
        const inputs = readText(text);
        const parameters = { candidate_labels: labels.read() };
        if (several.box.checked) parameters.multi_label = true;
        if (template.value.trim()) {
          if (!template.value.includes("{}")) throw new FieldError("The hypothesis has no {} for the label.", template);
          parameters.hypothesis_template = readValue(template);
        }
        return { path: hubPath(model, "zero-shot-classification"), body: { inputs, parameters } };
      },
      show(answer) {
        return { content: bars(answer, "Labels, best first", "labels"), summary: describeBest(answer, "labels") };
      },
    };
  },
});
