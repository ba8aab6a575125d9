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

/** A value of JSON as a literal of Python; JSON's strings are Python's too. */
function writeLiteral(value, indent = "") {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = `${indent}    `;
  const isList = Array.isArray(value);
  const items = isList
    ? value.map((each) => writeLiteral(each, inner))
    : Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${writeLiteral(each, inner)}`);
  const [open, close] = isList ? "[]" : "{}";
  const line = `${open}${items.join(", ")}${close}`;
  if (!line.includes("\n") && line.length + indent.length <= 80) return line;
  return `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${indent}${close}`;
}

function writeCurl(request, hasKey) {
  const lines = [`curl ${request.body.stream ? "-sN" : "-s"} ${quoteShell(`${SERVER_URL}${request.path}`)}`];
  if (hasKey) lines.push('-H "Authorization: Bearer $API_KEY"');
  lines.push("-H 'Content-Type: application/json'", `-d ${quoteShell(JSON.stringify(request.body, null, 2))}`);
  return lines.join(" \\\n  ");
}

function writePython(request, hasKey) {
  const streams = Boolean(request.body.stream);
  const url = JSON.stringify(`${SERVER_URL}${request.path}`);
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

/** The calls that OpenAI's client has methods for; their parameters that OpenAI does not have go to `extra_body`. */
const OPENAI_METHODS = {
  "v1/embeddings": { method: "embeddings.create", own: ["model", "input", "dimensions", "encoding_format"] },
  "v1/chat/completions": { method: "chat.completions.create", own: null, text: "choices[0].delta.content" },
  "v1/completions": { method: "completions.create", own: null, text: "choices[0].text" },
};

function writeOpenai(request, hasKey) {
  const known = OPENAI_METHODS[request.path];
  const isVersioned = request.path.startsWith("v1/");
  const url = JSON.stringify(`${SERVER_URL}${isVersioned ? "v1" : ""}`.replace(/\/$/, ""));
  const key = hasKey ? 'os.environ["API_KEY"]' : '"none"';
  const head = `${hasKey ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${url}, api_key=${key})
`;
  if (known === undefined) {
    const path = JSON.stringify(`/${isVersioned ? request.path.slice("v1/".length) : request.path}`);
    return `${head}answer = client.post(
    ${path},
    cast_to=object,
    body=${writeLiteral(request.body, "    ")},
)
print(answer)`;
  }
  const isOwn = ([name]) => known.own === null || known.own.includes(name);
  const given = Object.entries(request.body);
  const lines = given.filter(isOwn).map(([name, value]) => `    ${name}=${writeLiteral(value, "    ")},\n`);
  const others = Object.fromEntries(given.filter((each) => !isOwn(each)));
  if (Object.keys(others).length) lines.push(`    extra_body=${writeLiteral(others, "    ")},\n`);
  const create = `client.${known.method}(\n${lines.join("")})`;
  if (!request.body.stream) return `${head}answer = ${create}\nprint(answer)`;
  return `${head}for chunk in ${create}:
    if chunk.choices:
        print(chunk.${known.text} or "", end="", flush=True)`;
}
