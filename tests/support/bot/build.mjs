// Bundles bot.js with the data of one protocol version: node build.mjs OUTPUT. Its dependencies unpacked take half a gigabyte.
import { build } from 'esbuild'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname } from 'node:path'

const { config } = JSON.parse(readFileSync(new URL('package.json', import.meta.url)))
const data = createRequire(import.meta.url).resolve('minecraft-data/data.js')

const oneVersion = {
  name: 'one-version',
  setup (esbuild) {
    esbuild.onLoad({ filter: /minecraft-data\/data\.js$/ }, () => {
      const lines = readFileSync(data, 'utf8').split('\n')
      const first = lines.indexOf(`    '${config.minecraft}': {`)
      const fields = lines.slice(first + 1, lines.indexOf('    },', first)).filter((line) => line.includes('require('))
      return { contents: `module.exports = { pc: { '${config.minecraft}': {\n${fields.join('\n')}\n} }, bedrock: {} }`, resolveDir: dirname(data) }
    })
    esbuild.onLoad({ filter: /minecraft-data\/minecraft-data\/data\/bedrock\/.*\.json$/ }, () => ({ contents: '[]', loader: 'json' }))
    // It joins offline.
    esbuild.onLoad({ filter: /minecraft-protocol\/src\/client\/(microsoftAuth|mojangAuth)\.js$/ }, () => ({ contents: '' }))
  }
}

await build({
  entryPoints: [new URL('bot.js', import.meta.url).pathname],
  outfile: process.argv[2],
  bundle: true,
  platform: 'node',
  target: 'node18',
  logLevel: 'warning',
  minifySyntax: true,
  plugins: [oneVersion]
})
