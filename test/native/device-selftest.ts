// `deem cuda-selftest` on the emulated GPU, in small: that it runs whole and finds nothing wrong there.
import { cudaSelftest, type SelftestRow, selftestText } from '../../dist/selftest/run.js'
import { cudaTest } from '../_harness/emulated.js'

cudaTest('the self-test passes: draws, operations with gradients, AdamW, training steps', async (t) => {
  t.timeout(240_000)
  const told: SelftestRow[] = []
  const { device, rows } = await cudaSelftest({ scale: 128, onRow: (row) => told.push(row) })
  const lines = rows.map((row) => selftestText(row, device))
  t.deepEqual(
    lines.filter((line) => !line.startsWith('ok')),
    [],
  )
  t.deepEqual(told, rows)
  t.true(rows.length > 90)
  for (const row of rows) t.true(row.error <= row.limit, row.name)
  t.true(device.memoryRate > 0 && device.f32Rate > 0 && device.tensorRate > 0)
  t.true(lines.some((line) => / us .*GB\/s \d+ % .*TFLOP\/s \d+ %/.test(line)))
})
