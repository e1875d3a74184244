export interface Line {
  name: string;
  price(): number;
}

export type Lines = Line[];

export enum Kind {
  Food,
  Book,
}

@sealed
export class Cart<T extends Line> {
  private lines: T[] = [];

  constructor(private readonly owner: string) {}

  @log()
  public add(line: T): void {
    this.lines.push(line);
  }

  /** Sums up. */
  get total(): number {
    return 0;
  }
}

export abstract class Shape {
  abstract area(): number;
}

namespace Util {
  export function twice(x: number): number {
    return x * 2;
  }
}

declare function ambient(x: string): void;

export const View = ({ name }: { name: string }) => {
  return <b>{name}</b>;
};
