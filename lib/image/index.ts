export {
  type DecodeOptions,
  decodeImage,
  encodePng,
  type ImageSource,
  type Picture,
  pictureAt,
  type RawImage,
} from './decode.js'
export { maskPicture, type Region, regionMask } from './region.js'
export { type Filter, resize } from './resize.js'
export {
  centerCrop,
  crop,
  fitTo,
  flipHorizontal,
  pad,
  type SquareOptions,
  square,
  type TwoViews,
  twoViews,
} from './transform.js'
