// Scores of images in Node: node predict.mjs MODEL_FOLDER IMAGE...
// Prints one JSON object a line: {"image", "attributes", "scores"}; with DTYPE=q8 it takes onnx/model_quantized.onnx.
import { readFile } from "node:fs/promises";
import path from "node:path";
import { AutoModel, AutoImageProcessor, env, RawImage } from "@huggingface/transformers";

const [folder, ...images] = process.argv.slice(2);
if (!folder || images.length === 0) {
  console.error("usage: node predict.mjs MODEL_FOLDER IMAGE...");
  process.exit(2);
}
env.allowRemoteModels = false; // the folder is all there is; without this line "user/repo" loads from the Hub
env.localModelPath = path.dirname(path.resolve(folder)) + path.sep;
const name = path.basename(path.resolve(folder));
const { label_names, thresholds } = JSON.parse(await readFile(path.join(folder, "config.json"), "utf8"));
const model = await AutoModel.from_pretrained(name, { dtype: process.env.DTYPE ?? "fp32" });
const processor = await AutoImageProcessor.from_pretrained(name);

for (const image of images) {
  const { logits } = await model(await processor(await RawImage.read(image)));
  const values = logits.sigmoid().tolist()[0];
  const scores = Object.fromEntries(label_names.map((label, index) => [label, values[index]]));
  console.log(JSON.stringify({ image, attributes: label_names.filter((label) => scores[label] >= thresholds[label]), scores }));
}
