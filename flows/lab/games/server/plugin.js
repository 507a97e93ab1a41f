'use strict'
// Takes the place of flying-squid's own log and console. `settings.log` is ours; see log.js.

const COLOURED = /[§&][0-9a-fk-or]/gi

module.exports.server = function (serv, settings) {
  const { log } = settings
  serv.log = serv.info = (message) => log.info(plain(message))
  serv.warn = (message) => log.warn(plain(message))
  serv.err = (message) => log.error(plain(message))
  serv.createLog = () => {}
  serv.on('error', () => {}) // game.js looks at the listener's errors; without any handler here the first would end the process
  serv.on('clientError', (client, error) => log.info(`${client.socket?.remoteAddress}: ${error.message}`))
}

module.exports.player = function (player, serv, { log }) {
  const { socket } = player._client
  const from = `${socket?.remoteAddress}:${socket?.remotePort}`
  player.on('connected', () => {
    const { x, y, z } = player.position
    log.info(`UUID of player ${player.username} is ${player.uuid}`)
    log.info(`${player.username}[/${from}] logged in with entity id ${player.id} at (${x}, ${y}, ${z})`)
    log.info(`${player.username} joined the game`)
  })
  player.on('disconnected', () => {
    clearInterval(player.latencyTimer)
    log.info(`${player.username} lost connection: Disconnected`)
    log.info(`${player.username} left the game`)
  })
  player.on('chat', ({ message }) => log.info(`<${player.username}> ${message}`))
}

function plain (message) {
  return String(message).replace(/\u001b\[[0-9;]*m/g, '').replace(COLOURED, '') // eslint-disable-line no-control-regex
}
