// No 'use strict' here: of the first file of a bundle it would hold for every library in it, and flying-squid relies on its absence.
// The lab's game server. Honest about what it is: no code of Mojang's, but flying-squid (PrismarineJS, MIT), a Minecraft-protocol server,
// behind this thin front, which reads server.properties and eula.txt and speaks the console's dialect as the real server's operators and
// their tools know it. It runs in the current directory, as the real one does, and ends with status 143 on SIGTERM, as a JVM does.
/* global ZLH_MINECRAFT, ZLH_SQUID, ZLH_VERSION */

const fs = require('node:fs')
const Log = require('./log')
const Console = require('./console')
const Game = require('./game')
const { readEula, readProperties } = require('./properties')

const TERMINATED = 143
const FAILED = 1

async function main () {
  const began = process.hrtime.bigint()
  process.noDeprecation = true // the libraries' old ways are no business of a host's log
  const log = new Log('logs')
  if (!readEula(log)) return 0
  log.info(`Starting minecraft server version ${ZLH_MINECRAFT}`)
  log.info(`flying-squid ${ZLH_SQUID} behind the lab's console ${ZLH_VERSION}: this is not Mojang's server`)
  const properties = readProperties(log)
  if (properties === null) return FAILED

  const game = new Game(log, properties, ZLH_MINECRAFT)
  let status = 0
  const ended = new Promise((resolve) => { game.once('stopped', resolve) })
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP']) {
    process.on(signal, () => {
      status = TERMINATED
      game.stop()
    })
  }
  process.on('uncaughtException', (error) => log.error(`Encountered an unexpected exception: ${error.stack}`))
  process.on('unhandledRejection', (error) => {
    if (!/^Timeout waiting for/.test(error?.message)) log.error(`Encountered an unexpected exception: ${error?.stack ?? error}`)
  })

  try {
    await game.start()
  } catch (error) {
    if (error.code === 'EADDRINUSE' || error.code === 'EADDRNOTAVAIL' || error.code === 'EACCES') {
      log.warn('**** FAILED TO BIND TO PORT!')
      log.warn(`The exception was: ${error.message}`)
      log.warn('Perhaps a server is already running on that port?')
    } else {
      log.error(`Failed to start the minecraft server: ${error.stack}`)
    }
    return FAILED
  }
  if (!game.stopping) {
    const seconds = Number(process.hrtime.bigint() - began) / 1e9
    log.info(`Done (${seconds.toFixed(3)}s)! For help, type "help"`)
  }
  const reader = new Console(log, (line) => game.command(line))
  reader.open()
  await ended
  return status
}

main().then(
  (status) => { process.exitCode = status; process.exit() },
  (error) => {
    fs.writeSync(2, `${error.stack}\n`)
    process.exit(FAILED)
  }
)
