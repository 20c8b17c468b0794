import { z } from "zod";

/** A bucket, or a part of one. Secrets are references; see {@link placeS3} for paths. */
export interface S3Config {
  readonly bucket: string;
  /** Empty, or segments with slashes between them; no slash at either end. */
  readonly prefix: string;
  readonly region: string;
  /** Where the service is; never taken from the environment. */
  readonly endpoint: string;
  /** Whether the bucket's name goes into the path and not into the host name. */
  readonly pathStyle: boolean;
  /** References to the two halves of a key, or where AWS's own tools look: environment, files, the machine's role. */
  readonly credentials: "standard" | { readonly accessKey: string; readonly secretKey: string };
  /** File with the PEM of the CA that the endpoint's certificate must chain to; undefined: the system's. */
  readonly ca?: string | undefined;
}

const reference = z
  .string()
  .regex(/^\$\{(file|env):[^{}]+\}$/, "a literal secret is refused; write a reference such as ${file:secrets/s3-key}");

/** Why a URL may not be an endpoint; undefined when it may. */
export function endpointFault(text: string): string | undefined {
  const parsed = URL.parse(text);
  if (parsed === null) return "is not a URL such as https://s3.example.com";
  if (parsed.username !== "" || parsed.password !== "") return "must not have a user or a password in it";
  if (parsed.search !== "" || parsed.hash !== "" || parsed.pathname !== "/") return "must end after host and port";
  if (parsed.protocol === "https:") return undefined;
  const here = parsed.protocol === "http:" && /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/.test(parsed.hostname);
  return here ? undefined : "must begin with https:// (http:// only on this machine)";
}

const endpoint = z.string().superRefine((text, context) => {
  const fault = endpointFault(text);
  if (fault !== undefined) context.addIssue({ code: "custom", message: fault });
});

const REGION = /^[a-z]{2,}(-[a-z0-9]+){1,4}$/;
const PREFIX = /^[A-Za-z0-9_][A-Za-z0-9._-]*(\/[A-Za-z0-9_][A-Za-z0-9._-]*)*$/;

const keys = z.strictObject({
  bucket: z.string().regex(/^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/, "is not the name of a bucket"),
  prefix: z
    .string()
    .max(200)
    .regex(PREFIX, "must be segments such as glasskey/prod, without a slash at either end")
    .optional(),
  region: z.string().regex(REGION, "is not a region such as eu-central-1").default("us-east-1"),
  endpoint: endpoint.optional(),
  path_style: z.boolean().optional(),
  credentials: z.literal("standard", 'must be "standard", or be left out').optional(),
  access_key: reference.optional(),
  secret_key: reference.optional(),
  ca: z.string().min(1).optional(),
});

export const S3_KEYS: readonly string[] = Object.keys(keys.shape);

/** `s3:` wherever glasskey.yaml has one. Paths and references stay as they are written. */
export const s3Schema = keys.transform((value, context): S3Config => {
  const { access_key: accessKey, secret_key: secretKey } = value;
  const both = accessKey !== undefined && secretKey !== undefined;
  const none = accessKey === undefined && secretKey === undefined;
  if (value.credentials === "standard" ? !none : !both) {
    const message =
      value.credentials === "standard"
        ? "has both `credentials: standard` and keys; one of them must go"
        : "needs `access_key` and `secret_key`, or `credentials: standard` to look where AWS's own tools look";
    context.addIssue({ code: "custom", message });
    return z.NEVER;
  }
  return {
    bucket: value.bucket,
    prefix: value.prefix ?? "",
    region: value.region,
    endpoint: value.endpoint ?? awsEndpoint(value.region),
    pathStyle: value.path_style ?? value.endpoint !== undefined,
    credentials: both ? { accessKey, secretKey } : "standard",
    ca: value.ca,
  };
});

/** https://docs.aws.amazon.com/general/latest/gr/s3.html; for other partitions `endpoint` is written out. */
export function awsEndpoint(region: string): string {
  return `https://s3.${region}.amazonaws.com${region.startsWith("cn-") ? ".cn" : ""}`;
}

/** The same with every path and reference made absolute by the caller's rules. */
export function placeS3(
  config: S3Config,
  rules: { path: (text: string) => string; reference: (text: string) => string },
): S3Config {
  const { credentials, ca } = config;
  return {
    ...config,
    ca: ca === undefined ? undefined : rules.path(ca),
    credentials:
      credentials === "standard"
        ? credentials
        : { accessKey: rules.reference(credentials.accessKey), secretKey: rules.reference(credentials.secretKey) },
  };
}
