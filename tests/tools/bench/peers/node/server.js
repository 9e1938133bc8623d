'use strict';
// Node's own http and better-sqlite3: verify, insert, answer; a transaction each, WAL, FULL.
const http = require('node:http');
const { createHash, createHmac, timingSafeEqual } = require('node:crypto');
const Database = require('better-sqlite3');

const [, , path, port] = process.argv;
const key = process.env.SIGNATURE_KEY;

const db = new Database(path);
db.pragma('journal_mode = WAL');
db.pragma('synchronous = FULL');
db.exec(`CREATE TABLE IF NOT EXISTS callbacks (
  id INTEGER PRIMARY KEY,
  instance TEXT NOT NULL,
  sha256 BLOB NOT NULL,
  body BLOB NOT NULL,
  received_at INTEGER NOT NULL,
  UNIQUE (instance, sha256)
)`);
const insert = db.prepare(
  'INSERT INTO callbacks (instance, sha256, body, received_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING'
);

function isValid(body, header) {
  const made = Buffer.from('sha256=' + createHmac('sha256', key).update(body).digest('base64'));
  const given = Buffer.from(header || '');
  return given.length === made.length && timingSafeEqual(given, made);
}

function answer(response, status, content) {
  const text = JSON.stringify(content);
  response.writeHead(status, {
    'Content-Type': 'application/json',
    'Content-Length': Buffer.byteLength(text),
  });
  response.end(text);
}

const server = http.createServer((request, response) => {
  const chunks = [];
  request.on('data', (chunk) => chunks.push(chunk));
  request.on('end', () => {
    const body = Buffer.concat(chunks);
    if (!isValid(body, request.headers['elements-webhook-signature'])) {
      return answer(response, 401, { error: 'invalid signature' });
    }
    const instance = request.url.slice('/callbacks/'.length);
    const sha256 = createHash('sha256').update(body).digest();
    const { changes } = insert.run(instance, sha256, body, Date.now());
    answer(response, 200, { duplicate: changes === 0 });
  });
});

server.listen(Number(port), '127.0.0.1');
process.on('SIGTERM', () => {
  server.close(() => {
    db.close();
    process.exit(0);
  });
  server.closeAllConnections();
});
