/**
 * The pickles that torch saves weights in, and no others: a program for a stack machine (Python's pickletools describes the
 * opcodes), of which we run what builds plain containers, numbers, strings and tensors. Everything else is refused by name, so
 * that no file can call anything.
 */
import { DeemError } from '../errors.js'

/** A storage of the archive as a tensor refers to it: `('storage', type, key, location, elements)`. */
export interface PickledStorage {
  /** torch's class, e.g. `HalfStorage`. */
  type: string
  /** Name of its bytes in the archive. */
  key: string
  elements: number
}

/** A tensor before its bytes are read. Offsets and strides count elements. */
export class PickledTensor {
  constructor(
    readonly storage: PickledStorage,
    readonly offset: number,
    readonly shape: readonly number[],
    readonly strides: readonly number[],
  ) {}
}

/** A name that a pickle imports; only those of {@link callable} may be called. */
class Global {
  constructor(readonly name: string) {}
}

export type Pickled =
  | null
  | boolean
  | number
  | string
  | Pickled[]
  | Map<Pickled, Pickled>
  | PickledTensor
  | PickledStorage
  | Global

const maxDepth = 64
const maxItems = 4_000_000

function fail(what: string): never {
  throw new DeemError('ERR_FORMAT', `pickle: ${what}`)
}

function whole(v: Pickled | undefined, what: string): number {
  if (typeof v !== 'number' || !Number.isSafeInteger(v) || v < 0) fail(`${what} must be a whole number of at least 0`)
  return v
}

function sizes(v: Pickled | undefined, what: string): number[] {
  if (!Array.isArray(v) || v.length > 16) fail(`${what} must be at most 16 numbers`)
  return v.map((n) => whole(n, what))
}

function rebuildTensor([storage, offset, shape, strides]: Pickled[]): PickledTensor {
  if (!storage || typeof storage !== 'object' || !('elements' in storage)) fail('a tensor needs a storage')
  const t = new PickledTensor(storage, whole(offset, 'an offset'), sizes(shape, 'a shape'), sizes(strides, 'strides'))
  if (t.shape.length !== t.strides.length) fail('shape and strides of a tensor differ in length')
  const reach = t.shape.includes(0)
    ? t.offset
    : t.shape.reduce((at, n, i) => at + (n - 1) * (t.strides[i] as number), t.offset + 1)
  if (!(reach <= storage.elements))
    fail(`a tensor of shape [${t.shape}] reaches element ${reach} of a storage of ${storage.elements}`)
  return t
}

/** What a pickle may call. */
const callable: Record<string, (args: Pickled[]) => Pickled> = {
  'collections.OrderedDict': (args) => {
    if (args.length > 0) fail('an OrderedDict made from arguments')
    return new Map()
  },
  'torch._utils._rebuild_tensor_v2': rebuildTensor,
  'torch._utils._rebuild_parameter': ([t]) => (t instanceof PickledTensor ? t : fail('a parameter that is no tensor')),
}

/** What may be named without being called. */
const nameable = /^torch\.(?:storage\.)?(?:[A-Z][A-Za-z0-9]*Storage|UntypedStorage)$/

/** Runs a pickle. Throws ERR_FORMAT naming what is not allowed, broken or too large. */
export function unpickle(bytes: Uint8Array): Pickled {
  return new Machine(bytes).run()
}

class Machine {
  readonly #bytes: Uint8Array
  readonly #view: DataView
  readonly #stack: Pickled[] = []
  readonly #marks: number[] = []
  readonly #memo = new Map<number, Pickled>()
  #at = 0
  #items = 0

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  }

  run(): Pickled {
    for (;;) {
      const code = this.#u8()
      if (code === 0x2e /* . STOP */) {
        if (this.#stack.length !== 1 || this.#marks.length > 0) fail('it ends with more than one value')
        return this.#pop()
      }
      const op = opcodes[code]
      if (!op) fail(`opcode 0x${code.toString(16).padStart(2, '0')} at byte ${this.#at - 1} is not allowed`)
      op(this)
    }
  }

  #need(n: number): number {
    if (!(n >= 0 && this.#at + n <= this.#bytes.length)) fail(`it ends within a value at byte ${this.#at}`)
    const at = this.#at
    this.#at += n
    return at
  }
  #u8(): number {
    return this.#bytes[this.#need(1)] as number
  }
  u8 = () => this.#u8()
  u16 = () => this.#view.getUint16(this.#need(2), true)
  i32 = () => this.#view.getInt32(this.#need(4), true)
  u32 = () => this.#view.getUint32(this.#need(4), true)
  f64 = () => this.#view.getFloat64(this.#need(8), false)
  u64(): number {
    const n = this.#view.getBigUint64(this.#need(8), true)
    if (n > BigInt(Number.MAX_SAFE_INTEGER)) fail('a length above 2^53')
    return Number(n)
  }
  /** Two's complement, little endian. */
  long(n: number): number {
    if (n > 8) fail('a whole number of more than 8 bytes')
    const at = this.#need(n)
    let v = 0n
    for (let i = 0; i < n; i++) v |= BigInt(this.#bytes[at + i] as number) << BigInt(8 * i)
    v = BigInt.asIntN(8 * n || 1, v)
    const out = Number(v)
    if (!Number.isSafeInteger(out)) fail('a whole number beyond 2^53')
    return out
  }
  text(n: number): string {
    const at = this.#need(n)
    try {
      return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(this.#bytes.subarray(at, at + n))
    } catch {
      fail(`a string at byte ${at} is not UTF-8`)
    }
  }
  line(): string {
    const end = this.#bytes.indexOf(0x0a, this.#at)
    if (end < 0) fail('a line without an end')
    const text = this.text(end - this.#at)
    this.#at++
    return text
  }

  push(v: Pickled): void {
    if (++this.#items > maxItems) fail(`more than ${maxItems} values`)
    this.#stack.push(v)
  }
  #pop(): Pickled {
    const floor = this.#marks.at(-1) ?? 0
    if (this.#stack.length <= floor) fail(`a value is missing at byte ${this.#at - 1}`)
    return this.#stack.pop() as Pickled
  }
  pop = () => this.#pop()
  top(): Pickled {
    const v = this.#pop()
    this.#stack.push(v)
    return v
  }
  mark(): void {
    if (this.#marks.length >= maxDepth) fail(`nested deeper than ${maxDepth}`)
    this.#marks.push(this.#stack.length)
  }
  /** Values since the last mark. */
  since(): Pickled[] {
    const from = this.#marks.pop()
    if (from === undefined) fail(`a mark is missing at byte ${this.#at - 1}`)
    return this.#stack.splice(from)
  }
  put(key: number): void {
    this.#memo.set(key, this.top())
    if (this.#memo.size > maxItems) fail(`more than ${maxItems} memorised values`)
  }
  memoize(): void {
    this.put(this.#memo.size)
  }
  get(key: number): void {
    if (!this.#memo.has(key)) fail(`memorised value ${key} does not exist`)
    this.push(this.#memo.get(key) as Pickled)
  }

  global(module: string, name: string): void {
    // Python 2's names, as protocol 2 writes them.
    const full = `${module}.${name}`
    if (!Object.hasOwn(callable, full) && !nameable.test(full)) fail(`'${full}' is not allowed`)
    this.push(new Global(full))
  }
  reduce(): void {
    const args = this.#pop()
    const f = this.#pop()
    if (!(f instanceof Global) || !Array.isArray(args)) fail('a call of what is no function')
    const call = Object.hasOwn(callable, f.name) ? callable[f.name] : undefined
    if (!call) fail(`a call of '${f.name}' is not allowed`)
    this.push(call(args))
  }
  /** `('storage', class, key, location, elements)`. */
  persistent(): void {
    const id = this.#pop()
    if (!Array.isArray(id) || id[0] !== 'storage' || !(id[1] instanceof Global) || typeof id[2] !== 'string')
      fail('a reference that is no storage')
    this.push({ type: id[1].name.split('.').at(-1) as string, key: id[2], elements: whole(id[4], 'a storage size') })
  }
  setItems(pairs: Pickled[]): void {
    const map = this.top()
    if (!(map instanceof Map) || pairs.length % 2) fail('items for what is no dictionary')
    for (let i = 0; i < pairs.length; i += 2) map.set(pairs[i] as Pickled, pairs[i + 1] as Pickled)
  }
  append(values: Pickled[]): void {
    const list = this.top()
    if (!Array.isArray(list)) fail('values for what is no list')
    for (const v of values) list.push(v)
  }
  /** State of an OrderedDict (`_metadata`) carries no weights. */
  build(): void {
    this.#pop()
    if (!(this.top() instanceof Map)) fail('state for what is no dictionary')
  }
}

const opcodes: Record<number, (m: Machine) => void> = {
  128: (m) => (m.u8() > 5 ? fail('a protocol above 5') : undefined), // PROTO
  149: (m) => void m.u64(), // FRAME
  40: (m) => m.mark(), // MARK
  48: (m) => void m.pop(), // POP
  49: (m) => void m.since(), // POP_MARK
  50: (m) => m.push(m.top()), // DUP
  78: (m) => m.push(null), // NONE
  136: (m) => m.push(true), // NEWTRUE
  137: (m) => m.push(false), // NEWFALSE
  74: (m) => m.push(m.i32()), // BININT
  75: (m) => m.push(m.u8()), // BININT1
  77: (m) => m.push(m.u16()), // BININT2
  138: (m) => m.push(m.long(m.u8())), // LONG1
  71: (m) => m.push(m.f64()), // BINFLOAT
  88: (m) => m.push(m.text(m.u32())), // BINUNICODE
  140: (m) => m.push(m.text(m.u8())), // SHORT_BINUNICODE
  141: (m) => m.push(m.text(m.u64())), // BINUNICODE8
  125: (m) => m.push(new Map()), // EMPTY_DICT
  93: (m) => m.push([]), // EMPTY_LIST
  41: (m) => m.push([]), // EMPTY_TUPLE
  116: (m) => m.push(m.since()), // TUPLE
  133: (m) => m.push([m.pop()]), // TUPLE1
  134: (m) => m.push([m.pop(), m.pop()].reverse()), // TUPLE2
  135: (m) => m.push([m.pop(), m.pop(), m.pop()].reverse()), // TUPLE3
  108: (m) => m.push(m.since()), // LIST
  115: (m) => m.setItems([m.pop(), m.pop()].reverse()), // SETITEM
  117: (m) => m.setItems(m.since()), // SETITEMS
  97: (m) => m.append([m.pop()]), // APPEND
  101: (m) => m.append(m.since()), // APPENDS
  113: (m) => m.put(m.u8()), // BINPUT
  114: (m) => m.put(m.u32()), // LONG_BINPUT
  148: (m) => m.memoize(), // MEMOIZE
  104: (m) => m.get(m.u8()), // BINGET
  106: (m) => m.get(m.u32()), // LONG_BINGET
  99: (m) => m.global(m.line(), m.line()), // GLOBAL
  147: (m) => {
    const [module, name] = [m.pop(), m.pop()].reverse() // STACK_GLOBAL
    if (typeof module !== 'string' || typeof name !== 'string') fail('a global whose name is no string')
    m.global(module, name)
  },
  81: (m) => m.persistent(), // BINPERSID
  82: (m) => m.reduce(), // REDUCE
  98: (m) => m.build(), // BUILD
}
