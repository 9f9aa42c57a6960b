/**
 * Parses JSON as Python writes it: numbers that are not finite stand in it as bare words. `Infinity` becomes Infinity, `NaN` null.
 * Throws SyntaxError.
 */
export function parsePythonJson(text: string): unknown {
  return JSON.parse(
    text.replace(/"(?:[^"\\]|\\.)*"|-?\bInfinity\b|\bNaN\b/g, (token) =>
      token.endsWith('Infinity') ? token.replace('Infinity', '1e999') : token === 'NaN' ? 'null' : token,
    ),
  )
}
