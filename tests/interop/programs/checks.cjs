// What a program found, as one line of JSON each; as checks.py.
const MOST_TEXT = 200;

async function check(what, look) {
  let seen, isHeld = true;
  try {
    seen = await look();
  } catch (error) {
    [seen, isHeld] = [String(error), false];
  }
  console.log(JSON.stringify({ what, seen: String(seen).slice(0, MOST_TEXT), is_held: isHeld }));
}

function expect(isHeld, seen) {
  if (!isHeld) throw new Error(`saw ${seen}`);
  return seen;
}

module.exports = { check, expect };
