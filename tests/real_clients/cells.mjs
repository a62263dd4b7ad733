// What the programs of this folder for Node have in common; as `cells.py`, which see.

export const RESULTS = { weather: "sun", population: "2800000" };
export const PATIENCE = 5000;
export const SHORT = 2000;
const MANY = 50;
const AT_ONCE = 10;
const WAIT = ["silence", "cancel", "retry"];

export async function run(program) {
  const cells = JSON.parse(process.env.CELLS);
  const waiting = cells.filter((cell) => WAIT.includes(cell.case));
  const others = cells.filter((cell) => ![...WAIT, "many"].includes(cell.case));
  const workers = Array.from({ length: AT_ONCE }, async () => {
    while (others.length) await runCell(program, others.shift());
  });
  await Promise.all([...waiting.map((cell) => runCell(program, cell)), ...workers]);
  for (const cell of cells) if (cell.case === "many") await runCell(program, cell);
}

async function runCell(program, cell) {
  const number = cell.case === "many" ? MANY : 1;
  const began = performance.now();
  const asked = Array.from({ length: number }, (_, at) => `How is Rome? (${at})`);
  const answers = await Promise.all(asked.map((each) => saw(program, { ...cell, question: each })));
  const seconds = (performance.now() - began) / 1000;
  console.log(JSON.stringify({ ...cell, seconds, saw: number === 1 ? answers[0] : answers }));
}

async function saw(program, cell) {
  try {
    return await program(cell);
  } catch (error) {
    console.error(error);
    return { crashed: String(error) };
  }
}

// Only what there was.
export function known(saw) {
  const isKnown = (value) => value && !(Array.isArray(value) && !value.length);
  return Object.fromEntries(Object.entries(saw).filter(([, value]) => isKnown(value)));
}

// A `fetch` that counts what comes in silence, which no client shows: comments, or blanks.
export function listening() {
  const heard = { pings: 0 };
  heard.fetch = async (...request) => {
    const response = await fetch(...request);
    if (!response.body) return response;
    const ear = new TransformStream({
      transform(bytes, controller) {
        const text = new TextDecoder().decode(bytes);
        heard.pings += text === ": ping\n\n" || text === " ";
        controller.enqueue(bytes);
      },
    });
    return new Response(response.body.pipeThrough(ear), response);
  };
  return heard;
}
