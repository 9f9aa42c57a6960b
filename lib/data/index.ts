export {
  ahead,
  alignmentDocuments,
  captionIds,
  describeDocument,
  paintDocument,
  questionDocument,
  type SceneBatch,
  sceneBatch,
  sceneTokenizer,
  textQuestionDocument,
} from './batches.js'
export {
  type CaptionFacts,
  type CaptionScore,
  cornerWords,
  cropCaption,
  cropSlotCaption,
  denseCaption,
  readCaption,
  scoreCaption,
  slotCaption,
  slotCaptionWords,
  sparseCaption,
} from './captions.js'
export { type MeasuredBackground, measureBackgrounds } from './colors.js'
export {
  backgrounds,
  type NamedColor,
  type Noun,
  type NounGroup,
  nouns,
  nounWeights,
  quadrants,
  type Vendor,
  vendors,
} from './nouns.js'
export {
  type AskOptions,
  ask,
  type NegativeKind,
  negativeKinds,
  type PairKind,
  pairAt,
  pairKinds,
  type Question,
  type QuestionKind,
  questionAt,
  questionKinds,
  type ScenePair,
  type SceneQuestion,
} from './questions.js'
export { Random } from './random.js'
export {
  cropAt,
  cropSide,
  drawScene,
  renderCrops,
  renderScenes,
  type Scene,
  type SceneObject,
  type SceneSource,
  type Split,
  sceneAt,
  sceneSide,
  stream,
} from './scenes.js'
export { Sprites, spriteSizes } from './sprites.js'
