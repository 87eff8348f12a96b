%%% Properties of the conversion between terms and Python objects, through a running Python.
-module(prop_values).

-include_lib("proper/include/proper.hrl").

-export([prop_terms_come_back/0]).
-export([prop_integers_are_the_same_number/0]).
-export([prop_text_is_the_same_text/0]).
-export([prop_floats_are_the_same_float/0]).
-export([prop_python_literals_are_the_same_value/0]).
-export([prop_any_term_gives_an_answer/0]).

%% What was sent comes back as the table of conversions says.
prop_terms_come_back() ->
    ?FORALL(Term, value(), {ok, expected(Term)} =:= py:eval("x", #{x => Term})).

prop_integers_are_the_same_number() ->
    ?FORALL(
        N,
        large_integer(),
        {ok, integer_to_binary(N, 16)} =:= py:eval("format(n, 'X')", #{n => N})
    ).

prop_text_is_the_same_text() ->
    ?FORALL(
        Text,
        text(),
        {ok, {length(unicode:characters_to_list(Text)), Text}} =:= py:eval("(len(t), t)", #{t => Text})
    ).

prop_floats_are_the_same_float() ->
    ?FORALL(
        Float,
        any_float(),
        begin
            Pack = "__import__('struct').pack('>d', f)",
            {ok, <<Float/float>>} =:= py:eval(Pack, #{f => Float})
        end
    ).

%% Python reads the value as its own literal, without our conversion, and gives it to Erlang.
prop_python_literals_are_the_same_value() ->
    ?FORALL(Term, value(), {ok, expected(Term)} =:= py:eval(literal(Term))).

%% Whatever the term: an answer, and the next call is served.
prop_any_term_gives_an_answer() ->
    ?FORALL(
        Term,
        any(),
        begin
            Answered =
                case py:eval("x", #{x => Term}) of
                    {ok, _} -> true;
                    {error, {Class, _, _}} -> lists:member(Class, [<<"TypeError">>, <<"ValueError">>])
                end,
            Answered andalso {ok, 1} =:= py:eval("1")
        end
    ).

%%--------------------------------------------------------------------------------------------------
%% Generators

value() ->
    ?SIZED(Size, value(Size)).

value(0) ->
    leaf();
value(Size) ->
    ?LAZY(
        frequency([
            {4, leaf()},
            {2, few(value(Size div 3))},
            {2, ?LET(Items, few(value(Size div 3)), list_to_tuple(Items))},
            {2, ?SUCHTHAT(Map, map_of(key(Size div 3), value(Size div 3)), keys_stay_apart(Map))}
        ])
    ).

%% Containers stay small, or the values of nested ones grow to a hundred thousand elements.
few(Item) ->
    ?LET(Length, range(0, 5), vector(Length, Item)).

leaf() ->
    oneof([
        integer(),
        large_integer(),
        any_float(),
        boolean(),
        oneof([none, undefined, nil]),
        oneof([ok, 'żółw', '', 'a b', bytes]),
        text(),
        {bytes, binary()},
        exactly(self())
    ]).

map_of(Key, Value) ->
    ?LET(Pairs, few({Key, Value}), maps:from_list(Pairs)).

%% What Python can hash.
key(0) ->
    leaf();
key(Size) ->
    ?LAZY(oneof([leaf(), ?LET(Items, few(key(Size div 2)), list_to_tuple(Items))])).

large_integer() ->
    ?LET({Bits, Offset, Sign}, {range(0, 5000), integer(), oneof([1, -1])}, Sign * (1 bsl Bits) + Offset).

any_float() ->
    oneof([
        float(),
        oneof([0.0, -0.0, 1.7976931348623157e308, 5.0e-324, 2.2250738585072014e-308]),
        ?SUCHTHAT(F, ?LET(Bits, integer(0, (1 bsl 64) - 1), as_float(<<Bits:64>>)), is_float(F))
    ]).

as_float(<<Float/float>>) -> Float;
as_float(_) -> not_finite.

text() ->
    ?LET(
        Chars,
        list(oneof([range(0, 127), range(128, 16#D7FF), range(16#E000, 16#10FFFF)])),
        unicode:characters_to_binary(Chars)
    ).

%%--------------------------------------------------------------------------------------------------
%% The model

expected(undefined) -> none;
expected(nil) -> none;
expected(none) -> none;
expected(Bool) when is_boolean(Bool) -> Bool;
expected(Atom) when is_atom(Atom) -> atom_to_binary(Atom);
expected({bytes, Binary}) when is_binary(Binary) -> Binary;
expected(Tuple) when is_tuple(Tuple) -> list_to_tuple(expected(tuple_to_list(Tuple)));
expected(List) when is_list(List) -> [expected(Item) || Item <- List];
expected(Map) when is_map(Map) ->
    maps:from_list([{expected(K), expected(V)} || {K, V} <- maps:to_list(Map)]);
expected(Other) -> Other.

%% Keys that are equal in Python, or become equal on the way back, are an error of their own.
keys_stay_apart(Map) ->
    Keys = [comparable(Key) || Key <- maps:keys(Map)],
    length(lists:usort(Keys)) =:= maps:size(Map).

comparable(true) -> 1;
comparable(false) -> 0;
comparable(Float) when is_float(Float), trunc(Float) == Float -> trunc(Float);
comparable({bytes, Binary}) when is_binary(Binary) -> Binary;
comparable(Tuple) when is_tuple(Tuple) ->
    list_to_tuple([comparable(Item) || Item <- tuple_to_list(Tuple)]);
comparable(Other) -> expected(Other).

%% The value as Python source.
literal(Term) when Term =:= none; Term =:= undefined; Term =:= nil -> "None";
literal(true) -> "True";
literal(false) -> "False";
literal(Atom) when is_atom(Atom) -> literal(atom_to_binary(Atom));
literal(Integer) when is_integer(Integer), Integer < 0 -> ["-", literal(-Integer)];
literal(Integer) when is_integer(Integer) -> ["0x", integer_to_list(Integer, 16)];
literal(Float) when is_float(Float) -> ["float.fromhex('", float_hex(Float), "')"];
literal(Binary) when is_binary(Binary) ->
    ["b'", escaped(Binary), "'.decode()"];
literal({bytes, Binary}) when is_binary(Binary) -> ["b'", escaped(Binary), "'"];
literal(Pid) when is_pid(Pid) ->
    ["__import__('erlang').Pid(b'", escaped(term_to_binary(Pid)), "')"];
literal(Tuple) when is_tuple(Tuple) ->
    ["(", [[literal(Item), ","] || Item <- tuple_to_list(Tuple)], ")"];
literal(List) when is_list(List) -> ["[", [[literal(Item), ","] || Item <- List], "]"];
literal(Map) when is_map(Map) ->
    ["{", [[literal(K), ":", literal(V), ","] || {K, V} <- maps:to_list(Map)], "}"].

%% Python's notation for a float's exact bits.
float_hex(Float) ->
    <<Sign:1, Exponent:11, Fraction:52>> = <<Float/float>>,
    {Lead, Power} =
        case Exponent of
            0 -> {"0", -1022};
            _ -> {"1", Exponent - 1023}
        end,
    io_lib:format("~s0x~s.~13.16.0bp~b", [["-" || Sign =:= 1], Lead, Fraction, Power]).

escaped(Binary) ->
    [io_lib:format("\\x~2.16.0b", [Byte]) || <<Byte>> <= Binary].
