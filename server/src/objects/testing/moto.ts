import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { S3Client } from "@aws-sdk/client-s3";
import { MOTO_PATH } from "../../../../tools/trixie.ts";
import { Secret } from "../../core/secret.ts";
import type { S3Config } from "../config.ts";

/** Serves until its standard input ends, which it does with the test's process. */
const PROGRAM = `
import logging, sys
from moto.server import ThreadedMotoServer
logging.disable(logging.CRITICAL)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("port", server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
`;

/** Debian 13's python3-moto: an emulator of S3, which enforces Object Lock as far as the tests in s3.test.ts show. */
export interface Moto {
  readonly url: string;
  /** As an administrator of the account: what our own code cannot do. */
  readonly admin: S3Client;
  stop(): Promise<void>;
}

/** Why there is no emulator here, to be read after "skipped: "; undefined when there is one. */
export function motoMissing(): string | undefined {
  if (!existsSync("/usr/bin/python3")) return "no python3";
  const debians = ["flask", "flask_cors", "boto3", "responses", "antlr4"];
  const without = debians.find((name) => !existsSync(`/usr/lib/python3/dist-packages/${name}`));
  if (without !== undefined) return `Debian's Python packages are not installed (${without}; npm test does, as root)`;
  if (existsSync(MOTO_PATH) || existsSync("/usr/lib/python3/dist-packages/moto")) return undefined;
  return "python3-moto was not fetched (npm test does, where apt-get works)";
}

export async function startMoto(): Promise<Moto> {
  const child = spawn("/usr/bin/python3", ["-c", PROGRAM], {
    stdio: ["pipe", "pipe", "pipe"],
    env: {
      PATH: process.env["PATH"],
      PYTHONPATH: MOTO_PATH,
      PYTHONDONTWRITEBYTECODE: "1",
      MOTO_S3_DEFAULT_KEY_BUFFER_SIZE: "33554432",
    },
  });
  const port = await portOf(child);
  const url = `http://127.0.0.1:${port}`;
  const admin = new S3Client({
    ...{ region: "us-east-1", endpoint: url, forcePathStyle: true },
    credentials: { accessKeyId: "test", secretAccessKey: "test" },
  });
  return {
    ...{ url, admin },
    async stop() {
      admin.destroy();
      const gone = once(child, "exit");
      child.stdin.end();
      child.kill("SIGKILL");
      await gone;
    },
  };
}

/** Configuration for a bucket there, and the secrets that go with it. */
export function s3ConfigFor(url: string, bucket: string, more: Partial<S3Config> = {}): S3Config {
  return {
    ...{ bucket, prefix: "gk/test", region: "us-east-1", endpoint: url, pathStyle: true },
    credentials: { accessKey: "${env:S3_KEY}", secretKey: "${env:S3_SECRET}" },
    ...more,
  };
}

export const KEY_ID = "AKIAGLASSKEYTEST0001";
export const SECRET_KEY = "a-very-secret-secret-key-of-the-tests";
export const s3Secrets = (reference: string): Secret => new Secret(reference.includes("SECRET") ? SECRET_KEY : KEY_ID);

async function portOf(child: ChildProcess): Promise<number> {
  let output = "";
  return new Promise((resolve, reject) => {
    const take = (chunk: Buffer): void => {
      output += chunk.toString();
      const port = /port (\d+)/.exec(output)?.[1];
      if (port !== undefined) resolve(Number(port));
    };
    child.stdout?.on("data", take);
    child.stderr?.on("data", take);
    child.once("exit", (code) => reject(new Error(`moto ended with ${code}: ${output}`)));
  });
}
