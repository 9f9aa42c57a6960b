import type { Case } from '../case.js'
import { parts } from './parts.js'
import { optimizers, pointwise } from './pointwise.js'
import { products } from './products.js'
import { whole } from './whole.js'

export const cases: readonly Case[] = [...products, ...pointwise, ...optimizers, ...parts, ...whole]
