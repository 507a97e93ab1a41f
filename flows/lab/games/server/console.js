'use strict'
// Console lines from standard input, whatever it is. A FIFO is opened once more for reading AND writing: so it never ends, however often
// writers open and close it. The end of anything else (a terminal, a file, /dev/null) ends the console and not the game, as with the real one.

const fs = require('node:fs')
const net = require('node:net')
const readline = require('node:readline')

const LONGEST = 4096

class Console {
  constructor (log, handle) {
    this.log = log
    this.handle = handle
  }

  open () {
    const input = this.#input()
    if (input === null) return
    input.on('error', (error) => this.log.warn(`no console: ${error.message}`))
    const lines = readline.createInterface({ input, terminal: false, crlfDelay: Infinity })
    lines.on('line', (line) => {
      const text = line.trim().replace(/^\//, '')
      if (text.length > LONGEST) this.log.warn(`a console line of ${line.length} characters is ignored`)
      else if (text) this.handle(text)
    })
  }

  #input () {
    let kind
    try {
      kind = fs.fstatSync(0)
    } catch {
      return null // closed by whoever started us
    }
    if (!kind.isFIFO()) return process.stdin
    try {
      const fd = fs.openSync('/proc/self/fd/0', fs.constants.O_RDWR | fs.constants.O_NONBLOCK)
      return new net.Socket({ fd, readable: true, writable: false })
    } catch (error) {
      this.log.warn(`the console's FIFO cannot be reopened (${error.code}): it ends with its first writer`)
      return process.stdin
    }
  }
}

module.exports = Console
