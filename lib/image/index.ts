export {
  decodeImage,
  encodePng,
  type ImageDecodeOptions,
  type ImageSource,
  type Picture,
  pictureAt,
  type RawImage,
} from './decode.js'
export { maskPicture, type Region, regionMask } from './region.js'
export { type Filter, resize } from './resize.js'
export {
  type Color,
  centerCrop,
  crop,
  flipHorizontal,
  pad,
  type SquareOptions,
  square,
  type TwoViews,
  twoViews,
} from './transform.js'
