// Calls a layer in WebAssembly: node main.cjs up1.wasm. A browser does the same with fetch() in the place of readFileSync().
const fs = require("fs");

const NAME = "up1";
const FLOAT = 4;

function instantiate(bytes) {
  // The module imports nothing.
  return WebAssembly.instantiate(bytes, {}).then(({ instance }) => instance.exports);
}

// The sizes of a shape: five integers of 64 bits.
function elements(layer, address) {
  return new BigInt64Array(layer.memory.buffer, address, 5).reduce((all, size) => all * Number(size), 1);
}

function text(layer, address) {
  const bytes = new Uint8Array(layer.memory.buffer, address);
  return new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0)));
}

function run(layer) {
  const inputs = elements(layer, layer[`${NAME}_input_shape`](0));
  const outputs = elements(layer, layer[`${NAME}_output_shape`](0));
  const workspace = layer[`${NAME}_workspace_size`](0, 1);

  // Behind the module's own data there is room for as much as is asked for.
  let top = layer.__heap_base.value;
  const take = (size) => {
    const at = (top + 63) & ~63;
    top = at + size;
    return at;
  };
  const [args, x, y, scratch] = [take(64), take(inputs * FLOAT), take(outputs * FLOAT), take(workspace)];
  const missing = top - layer.memory.buffer.byteLength;
  if (missing > 0) layer.memory.grow((missing + 65535) >> 16);

  new Float32Array(layer.memory.buffer, x, inputs).forEach((_, i, input) => (input[i] = (i % 101) / 100));
  // up1_args: size, input, output, weights, workspace, its size; the rest is 0.
  new Uint32Array(layer.memory.buffer, args, 16).set([48, x, y, 0, scratch, workspace]);
  const code = layer[`${NAME}_run`](args);
  if (code !== 0) throw new Error(text(layer, layer[`${NAME}_error_text`](code)));
  return new Float32Array(layer.memory.buffer, y, outputs);
}

instantiate(fs.readFileSync(process.argv[2])).then((layer) => {
  const output = run(layer);
  const least = output.reduce((a, b) => Math.min(a, b));
  const most = output.reduce((a, b) => Math.max(a, b));
  console.log(`${output.length} values from ${least.toFixed(6)} to ${most.toFixed(6)}`);
});
