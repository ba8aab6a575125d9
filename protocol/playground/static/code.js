// The card with the code for the inputs of a workbench.

const SHOWN_CODE_CHARACTERS = 20_000;

/** The code of a request in the languages of CODE_KINDS; a long one is shown in part, and copied as a whole. */
function createCode(readKey) {
  let kind = CODE_KINDS[0].id;
  // Without a request, the problem says why.
  let request = null;
  let problem = "";
  const shown = element("code");
  const copied = element("span", { role: "status", class: "hint" });
  const write = () => CODE_KINDS.find(({ id }) => id === kind).write(request, readKey() !== "");
  const copy = button("Copy", async () => {
    copied.textContent = (await copyText(write())) ? "Copied" : "The browser does not allow it";
  });
  const update = () => {
    copied.textContent = "";
    copy.disabled = request === null;
    shown.textContent = request ? shortenCode(write()) : `No code for these inputs. ${problem}`;
  };
  const choose = (id) => {
    kind = id;
    update();
  };
  const title = element("h2", { id: newId() }, "Code for these inputs");
  return {
    element: element("section", { class: "card code", "aria-labelledby": title.id },
      element("div", { class: "heading" }, title, element("div", { class: "copy" }, copied, copy),
        segments("Language", CODE_KINDS, kind, choose)),
      element("pre", { tabindex: "0", "aria-label": "Code" }, shown)),
    /** Write what is shown again, for another key. */
    update,
    show(next) {
      request = next;
      update();
    },
    showProblem(message) {
      [request, problem] = [null, message];
      update();
    },
  };
}

function shortenCode(code) {
  const rest = code.length - SHOWN_CODE_CHARACTERS;
  if (rest <= 0) return code;
  return `${code.slice(0, SHOWN_CODE_CHARACTERS)}\n… and ${rest} more characters, which “Copy” copies too.`;
}
