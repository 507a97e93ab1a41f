'use strict'
// server.properties and eula.txt, in Java's properties form as far as the real server writes it.

const fs = require('node:fs')

const EULA = '#By changing the setting below to TRUE you are indicating your agreement to our EULA (https://aka.ms/MinecraftEULA).\n'

function parse (text) {
  const values = {}
  for (const line of text.split(/\r?\n/)) {
    const found = /^\s*([^#!\s][^=:\s]*)\s*[=:]?\s*(.*)$/.exec(line)
    if (found) values[found[1]] = found[2].replace(/\\u([0-9a-fA-F]{4})|\\(.)/g, (_, code, plain) => code ? String.fromCharCode(parseInt(code, 16)) : plain)
  }
  return values
}

/** Whether eula.txt says eula=true. Says what the real server says where it does not; a missing file is written. */
function readEula (log) {
  let text = null
  try {
    text = fs.readFileSync('eula.txt', 'utf8')
  } catch (error) {
    log.warn('Failed to load eula.txt')
    if (error.code === 'ENOENT') {
      try {
        fs.writeFileSync('eula.txt', `${EULA}eula=false\n`)
      } catch (failed) {
        log.warn(`Failed to save eula.txt: ${failed.message}`)
      }
    }
  }
  if (text !== null && parse(text).eula?.trim().toLowerCase() === 'true') return true
  log.info('You need to agree to the EULA in order to run the server. Go to eula.txt for more info.')
  return false
}

/** The settings that this server knows, checked; null (and a line in the log) where one is not valid. */
function readProperties (log) {
  log.info('Loading properties')
  let values = {}
  try {
    values = parse(fs.readFileSync('server.properties', 'utf8'))
  } catch (error) {
    if (error.code !== 'ENOENT') {
      log.error(`server.properties: ${error.message}`)
      return null
    }
    log.error('server.properties does not exist: its defaults are taken')
  }
  const wrong = []
  const number = (name, otherwise, least, most) => {
    const text = (values[name] ?? '').trim()
    if (text === '') return otherwise
    if (/^-?\d+$/.test(text) && Number(text) >= least && Number(text) <= most) return Number(text)
    wrong.push(`${name}=${text} must be a number from ${least} to ${most}`)
    return otherwise
  }
  const flag = (name, otherwise) => ((values[name] ?? '').trim() === '' ? otherwise : values[name].trim().toLowerCase() === 'true')
  const one = (name, otherwise, ...names) => {
    const text = (values[name] ?? '').trim().toLowerCase()
    if (text === '') return names.indexOf(otherwise)
    const found = /^\d$/.test(text) ? Number(text) : names.indexOf(text)
    if (found >= 0 && found < names.length) return found
    wrong.push(`${name}=${text} must be one of ${names.join(', ')}`)
    return 0
  }
  const level = (values['level-name'] ?? '').trim() || 'world'
  if (!/^[A-Za-z0-9_][A-Za-z0-9_ .-]*$/.test(level)) wrong.push(`level-name=${level} must be a plain directory name`)
  const properties = {
    port: number('server-port', 25565, 1, 65535),
    host: (values['server-ip'] ?? '').trim() || '0.0.0.0',
    motd: values.motd ?? 'A Minecraft Server',
    maxPlayers: number('max-players', 20, 0, 1000),
    onlineMode: flag('online-mode', true),
    view: number('view-distance', 4, 2, 10),
    mode: one('gamemode', 'survival', 'survival', 'creative', 'adventure', 'spectator'),
    difficulty: one('difficulty', 'easy', 'peaceful', 'easy', 'normal', 'hard'),
    level
  }
  for (const text of wrong) log.error(`server.properties: ${text}`)
  return wrong.length ? null : properties
}

module.exports = { parse, readEula, readProperties }
