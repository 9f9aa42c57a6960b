declare module 'node-gyp-build' {
  const load: { (root: string): unknown; path(root: string): string }
  export default load
}
