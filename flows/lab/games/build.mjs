// Bundles server/main.js and flying-squid into ONE file that needs nothing but Debian 12's node: node build.mjs OUTPUT
//
// Of minecraft-data only the protocol version of package.json's `config.minecraft` goes in; what a server does not need (clients, logins at
// Microsoft, the web) is left out, so nothing of it can ask the network for anything at run time. The same input gives the same bytes.
import { build } from 'esbuild'
import { readFileSync, readdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'

const here = dirname(fileURLToPath(import.meta.url))
const require = createRequire(import.meta.url)
const { config, version } = JSON.parse(readFileSync(join(here, 'package.json')))
const output = process.argv[2]
if (!output) throw new Error('usage: node build.mjs OUTPUT')

const squid = dirname(require.resolve('flying-squid/package.json'))
// Replaced by ours: the log and console; left out: plugins from outside, and a handler of all errors that ends the process.
const LEFT_OUT = ['index.js', 'log.js', 'external.js', 'errorHandler.js']

/** The data of one version, as a module: `data.js` as it is has a getter for each file of each version. */
function oneVersion () {
  const file = require.resolve('minecraft-data/data.js')
  const root = dirname(file)
  const lines = readFileSync(file, 'utf8').split('\n')
  const first = lines.indexOf(`    '${config.minecraft}': {`)
  if (first < 0) throw new Error(`minecraft-data knows no ${config.minecraft}`)
  const last = lines.indexOf('    },', first)
  const fields = lines.slice(first + 1, last).filter((line) => line.includes('require('))
  if (fields.length < 10) throw new Error('minecraft-data has another form than expected')
  // The library of region files asks for the major version, and for nothing in which the two differ.
  const major = config.minecraft.split('.').slice(0, 2).join('.')
  const contents = `const data = {\n${fields.join('\n')}\n}\nmodule.exports = { pc: { '${config.minecraft}': data, '${major}': data }, bedrock: {} }`
  return { contents, resolveDir: root }
}

/** A file with a change; that the libraries have another text by now must not pass unnoticed. */
function edited (path, before, after) {
  const text = readFileSync(path, 'utf8')
  if (!text.includes(before)) throw new Error(`${path} has no ${before}`)
  return { contents: text.replaceAll(before, after), resolveDir: dirname(path) }
}

const replaced = [
  [/minecraft-data\/data\.js$/, oneVersion],
  [/minecraft-data\/minecraft-data\/schemas\/.*\.json$/, () => ({ contents: '{}', loader: 'json' })],
  [/minecraft-data\/minecraft-data\/data\/bedrock\/.*\.json$/, () => ({ contents: '[]', loader: 'json' })],
  // A server is no client, and bans by name would ask Mojang.
  [/minecraft-protocol\/src\/(createClient|ping)\.js$/, () => ({ contents: 'module.exports = () => { throw new Error("this is a server") }' })],
  [/node_modules\/needle\/lib\/needle\.js$/, () => ({ contents: 'module.exports = (method, url, options, done) => done(new Error("no network"))' })],
  [/flying-squid\/src\/lib\/plugins\/index\.js$/, () => {
    const names = readdirSync(join(squid, 'src/lib/plugins')).filter((name) => name.endsWith('.js') && !LEFT_OUT.includes(name)).sort()
    const list = [JSON.stringify(join(here, 'server/plugin.js')), ...names.map((name) => JSON.stringify(`./${name}`))]
    return {
      contents: `exports.builtinPlugins = null\nexports.initPlugins = () => { exports.builtinPlugins = [${list.map((name) => `require(${name})`)}] }`,
      resolveDir: join(squid, 'src/lib/plugins')
    }
  }],
  // The only name that is put together at run time.
  [/prismarine-provider-anvil\/src\/1\.14\/chunk\.js$/, (path) => edited(
    path,
    // eslint-disable-next-line no-template-curly-in-string
    "require(`prismarine-chunk/src/pc/common/BitArray${noSpan ? 'NoSpan' : ''}`)",
    "(noSpan ? require('prismarine-chunk/src/pc/common/BitArrayNoSpan') : require('prismarine-chunk/src/pc/common/BitArray'))"
  )],
  // A timer that outlives its player: server/plugin.js ends it.
  [/flying-squid\/src\/lib\/plugins\/login\.js$/, (path) => edited(path, "setInterval(() => player._client.write('player_info'", "player.latencyTimer = $&")]
]

const leaner = {
  name: 'leaner',
  setup (esbuild) {
    esbuild.onResolve({ filter: /^flying-squid$/ }, () => ({ path: join(squid, 'src/index.js') }))
    for (const [filter, make] of replaced) {
      esbuild.onLoad({ filter }, ({ path }) => ({ loader: 'js', ...make(path) }))
    }
  }
}

const result = await build({
  absWorkingDir: here,
  entryPoints: ['server/main.js'],
  outfile: output,
  bundle: true,
  platform: 'node',
  target: 'node18',
  format: 'cjs',
  legalComments: 'inline',
  logLevel: 'warning',
  logOverride: { 'require-resolve-not-external': 'silent' },
  metafile: true,
  minifySyntax: true,
  minifyWhitespace: true,
  define: {
    'process.browser': 'false',
    ZLH_MINECRAFT: JSON.stringify(config.minecraft),
    ZLH_SQUID: JSON.stringify(JSON.parse(readFileSync(join(squid, 'package.json'))).version),
    ZLH_VERSION: JSON.stringify(version)
  },
  banner: {
    js: '// No code of Mojang\'s: flying-squid (MIT, PrismarineJS), a Minecraft-protocol server, behind a thin front that speaks the console\n' +
      '// dialect of the real one. Made by build.mjs of zlh-autopilot\'s lab; see there for the sources.'
  },
  plugins: [leaner]
})
const inputs = Object.entries(Object.values(result.metafile.outputs)[0].inputs)
console.log(JSON.stringify({ output: relative(process.cwd(), output) || output, minecraft: config.minecraft, modules: inputs.length }))
if (process.env.ZLH_BUNDLE_SIZES) {
  for (const [path, { bytesInOutput }] of inputs.sort((a, b) => b[1].bytesInOutput - a[1].bytesInOutput).slice(0, 25)) console.error(bytesInOutput, path)
}
