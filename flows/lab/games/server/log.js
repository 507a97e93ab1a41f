'use strict'
// Lines as the real server writes them, on standard output and in logs/latest.log: "[12:34:56] [Server thread/INFO]: text".
// A full disk or a closed output is no reason to end a game: such lines are lost.

const fs = require('node:fs')
const path = require('node:path')
const zlib = require('node:zlib')

// What players send ends up in lines: none of it may begin a line of its own.
const CONTROL = /[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g // eslint-disable-line no-control-regex
const PAST_LOGS = 10

class Log {
  constructor (directory) {
    this.file = null
    process.stdout.on('error', () => {})
    try {
      fs.mkdirSync(directory, { recursive: true })
      keepLast(directory)
      this.file = fs.openSync(path.join(directory, 'latest.log'), 'w')
    } catch (error) {
      this.warn(`no log file: ${error.message}`)
    }
  }

  info (text) { this.#write('INFO', text) }
  warn (text) { this.#write('WARN', text) }
  error (text) { this.#write('ERROR', text) }

  #write (level, text) {
    const time = new Date().toTimeString().slice(0, 8)
    // Only an error has further lines, a stack's: indented, so that none looks like a line of its own.
    const [first, ...stack] = level === 'ERROR' ? String(text).split('\n') : [String(text)]
    const lines = [`[${time}] [Server thread/${level}]: ${first.replace(CONTROL, '?')}`, ...stack.map((line) => `    ${line.trim().replace(CONTROL, '?')}`)]
    const line = lines.join('\n') + '\n'
    process.stdout.write(line)
    if (this.file === null) return
    try {
      fs.writeSync(this.file, line)
    } catch { /* the disk is full */ }
  }
}

/** The last run's log as a numbered archive; only some of them are kept. */
function keepLast (directory) {
  const latest = path.join(directory, 'latest.log')
  if (!fs.existsSync(latest)) return
  const day = fs.statSync(latest).mtime.toISOString().slice(0, 10)
  const past = fs.readdirSync(directory).filter((name) => name.endsWith('.log.gz')).sort()
  let number = 1
  while (past.includes(`${day}-${String(number).padStart(4, '0')}.log.gz`)) number++
  fs.writeFileSync(path.join(directory, `${day}-${String(number).padStart(4, '0')}.log.gz`), zlib.gzipSync(fs.readFileSync(latest)))
  for (const name of past.slice(0, Math.max(0, past.length + 1 - PAST_LOGS))) fs.unlinkSync(path.join(directory, name))
}

module.exports = Log
