// The code of a request: curl, Python, and OpenAI's client. A key is never in it, only the variable that has it.

const CODE_KINDS = [
  { id: "curl", title: "curl", write: writeCurl },
  { id: "python", title: "Python", write: writePython },
  { id: "openai", title: "OpenAI client", write: writeOpenai },
];

/** A word of a POSIX shell. */
function quoteShell(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

// Characters that are not seen, or that change the order of those around them: CVE-2021-42574.
const UNSEEN = /[\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/** JSON whose unseen characters are escaped. */
function writeJson(value, indent) {
  const escape = (each) => `\\u${each.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(value, null, indent).replace(UNSEEN, escape);
}

/** A value of JSON as a literal of Python; JSON's strings are Python's too. */
function writeLiteral(value, indent = "") {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return writeJson(value);
  const inner = `${indent}    `;
  const isList = Array.isArray(value);
  const items = isList
    ? value.map((each) => writeLiteral(each, inner))
    : Object.entries(value).map(([name, each]) => `${writeJson(name)}: ${writeLiteral(each, inner)}`);
  const [open, close] = isList ? "[]" : "{}";
  const line = `${open}${items.join(", ")}${close}`;
  if (!line.includes("\n") && line.length + indent.length <= 80) return line;
  return `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${indent}${close}`;
}

// Linux allows 131,072 bytes in an argument; a UTF-16 unit has at most 3.
const MAX_ARGUMENT_LENGTH = 40_000;

function writeCurl(request, hasKey) {
  const lines = [`curl ${request.body.stream ? "-sSN" : "-sS"} ${quoteShell(`${SERVER_URL}${request.path}`)}`];
  if (hasKey) lines.push('-H "Authorization: Bearer $API_KEY"');
  lines.push("-H 'Content-Type: application/json'");
  const body = writeJson(request.body, 2);
  const isLong = body.length > MAX_ARGUMENT_LENGTH;
  lines.push(isLong ? `-d @- <<'EOF'\n${body}\nEOF` : `-d ${quoteShell(body.replaceAll("\n", "\n  "))}`);
  return lines.join(" \\\n  ");
}

function writePython(request, hasKey) {
  const streams = Boolean(request.body.stream);
  const url = writeJson(`${SERVER_URL}${request.path}`);
  const key = hasKey ? `    headers={"Authorization": f"Bearer {os.environ['API_KEY']}"},\n` : "";
  const post = `requests.post(
    ${url},
${key}    json=${writeLiteral(request.body, "    ")},
    timeout=60,${streams ? "\n    stream=True," : ""}
)`;
  const imports = hasKey ? "import os\n\nimport requests\n\n" : "import requests\n\n";
  if (!streams) return `${imports}response = ${post}\nresponse.raise_for_status()\nprint(response.json())`;
  return `${imports}with ${post} as response:
    response.raise_for_status()
    for line in response.iter_lines():
        print(line.decode())`;
}

/**
 * The methods of OpenAI's client, by the paths that they call.
 *
 * `parameters`, if not null, are those that a method knows, others go to `extra_body`; `text` is that of a chunk.
 */
const OPENAI_METHODS = {
  "v1/embeddings": { name: "embeddings.create", parameters: ["model", "input", "dimensions", "encoding_format"] },
  "v1/chat/completions": { name: "chat.completions.create", parameters: null, text: "choices[0].delta.content" },
  "v1/completions": { name: "completions.create", parameters: null, text: "choices[0].text" },
};

function writeOpenai(request, hasKey) {
  const method = OPENAI_METHODS[request.path];
  const isVersioned = request.path.startsWith("v1/");
  const url = writeJson(`${SERVER_URL}${isVersioned ? "v1" : ""}`.replace(/\/$/, ""));
  const key = hasKey ? 'os.environ["API_KEY"]' : '"none"';
  const head = `${hasKey ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${url}, api_key=${key})
`;
  if (method === undefined) {
    const path = writeJson(`/${isVersioned ? request.path.slice("v1/".length) : request.path}`);
    return `${head}answer = client.post(
    ${path},
    cast_to=object,
    body=${writeLiteral(request.body, "    ")},
)
print(answer)`;
  }
  const isKnown = ([name]) => method.parameters === null || method.parameters.includes(name);
  const members = Object.entries(request.body);
  const lines = members.filter(isKnown).map(([name, value]) => `    ${name}=${writeLiteral(value, "    ")},\n`);
  const extraBody = Object.fromEntries(members.filter((member) => !isKnown(member)));
  if (Object.keys(extraBody).length) lines.push(`    extra_body=${writeLiteral(extraBody, "    ")},\n`);
  const create = `client.${method.name}(\n${lines.join("")})`;
  if (!request.body.stream) return `${head}answer = ${create}\nprint(answer)`;
  return `${head}for chunk in ${create}:
    if chunk.choices:
        print(chunk.${method.text} or "", end="", flush=True)`;
}
